"""The cases of these tests are small, but are meant to test the search that is used for large ones."""

from collections.abc import Iterator

import pytest

from detector.losses import backends, ranking


@pytest.fixture(autouse=True, scope="package")
def every_search_takes_the_grid() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_FEW", 0)
        yield


@pytest.fixture(scope="module", params=["compiled loops", "PyTorch alone"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Once as on a CPU with numba, once as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "PyTorch alone":
            patch.setattr(backends, "numba_works", lambda: False)
        yield
