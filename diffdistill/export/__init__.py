"""What other programs load: a model folder as a copy in half precision, one file, a LoRA; and its way to the Hub."""
