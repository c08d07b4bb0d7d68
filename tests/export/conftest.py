"""What the tests of exports share."""

import pytest


@pytest.fixture(scope="package")
def made(tmp_path_factory):
    from export_world import models  # needs transformers, which the tests that ask for it have

    return models(tmp_path_factory.mktemp("export"))
