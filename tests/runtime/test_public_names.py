"""The packages' public names exist and load nothing before they are used."""

import pytest

import edgeslim.devices
import edgeslim.evaluate
import edgeslim.runtime


@pytest.mark.parametrize(
    "package", [edgeslim.runtime, edgeslim.evaluate, edgeslim.devices], ids=["runtime", "evaluate", "devices"]
)
def test_every_public_name_can_be_had(package):
    assert package.__all__ == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sessions'"):
        _ = edgeslim.runtime.sessions
