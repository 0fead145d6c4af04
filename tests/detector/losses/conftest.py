"""The cases of these tests are small; the search that large ones take is what they are to try."""

from collections.abc import Iterator

import pytest

from detector.losses import ranking


@pytest.fixture(autouse=True, scope="package")
def every_search_takes_the_grid() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_FEW", 0)
        yield
