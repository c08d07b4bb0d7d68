"""Which text belongs to which image: the record, the numbers of names, in turn; what is not sure is said."""

import pytest

from diffdistill.errors import DataError
from diffdistill.evaluation.captions import captions_of, numbers_of

TEXTS = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["0.png", "1.png", "10.png"], [0, 1, 10]),
        (["s/image-007.png", "s/image-8.png"], [7, 8]),
        (["img (1).png", "img (2).png"], [1, 2]),
        (["run2_0.png", "run2_1.png"], [0, 1]),
        (["cat.png", "dog.png"], None),
        (["a/0.png", "b/1.png"], None),
        (["1-2.png", "2-1.png"], None),
        (["3.png"], [3]),
    ],
)
def test_the_one_number_that_differs_is_the_number_of_an_image(names: list[str], numbers: list[int] | None):
    assert numbers_of(names) == numbers


@pytest.mark.parametrize(
    ("count", "recorded", "names", "given", "texts", "said"),
    [
        (4, None, ["0.png", "1.png", "2.png", "10.png"], TEXTS, TEXTS, "have gaps, 0 to 10 for 4"),
        (4, None, ["0.png", "1.png", "2.png", "3.png"], TEXTS, TEXTS, None),
        (4, None, ["1.png", "2.png", "3.png", "4.png"], TEXTS, TEXTS, None),
        (4, None, None, TEXTS, TEXTS, None),
        (4, None, ["ox.png", "pig.png", "cow.png", "ape.png"], TEXTS, TEXTS, "'ox.png' is the first"),
        (4, None, ["0.png", "1.png", "2.png", "3.png"], ["a"], ("a",) * 4, None),
        (4, None, ["0.png", "1.png", "2.png", "3.png"], ["a", "b"], ("a", "b", "a", "b"), "image 2 has prompt 0"),
        (3, None, ["0.png", "1.png", "3.png"], TEXTS, ("a", "b", "d"), "4 prompts for 3 images"),
        (4, TEXTS, ["0.png", "1.png", "2.png", "3.png"], ["a", "b"], ("a", "b", "a", "b"), "image 2 the prompt 'a'"),
        (4, ("a", "b", "a", "b"), ["0.png", "1.png", "2.png", "3.png"], ["a", "b"], ("a", "b", "a", "b"), None),
        (4, TEXTS, ["ox.png", "pig.png", "cow.png", "ape.png"], TEXTS, TEXTS, None),
    ],
)
def test_each_image_has_its_own_text_or_something_is_said(count, recorded, names, given, texts, said):
    found = captions_of(count, recorded, given, names, "p.txt")
    assert found.texts == texts
    assert len(found.warnings) == (said is not None)
    assert said is None or said in found.warnings[0]


@pytest.mark.parametrize("names", [["1.png", "2.png", "3.png"], ["ox.png", "pig.png", "cow.png"], None])
def test_more_texts_than_images_without_numbers_from_0_are_refused(names: list[str] | None):
    with pytest.raises(DataError, match="4 prompts for 3 images"):
        captions_of(3, None, TEXTS, names, "p.txt")
