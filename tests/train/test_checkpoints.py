import pytest
import torch

from fsanet.errors import InputError
from fsanet.train.checkpoints import read_checkpoint


def test_round_trip(tmp_path):
    torch.save({"state_dict": {"a": torch.arange(3)}, "global_step": 7}, tmp_path / "a.ckpt")
    checkpoint = read_checkpoint(tmp_path / "a.ckpt")
    assert checkpoint["global_step"] == 7
    assert torch.equal(checkpoint["state_dict"]["a"], torch.arange(3))


@pytest.mark.parametrize(
    ("content", "match"),
    [(None, "no such checkpoint"), (b"", "damaged"), (b"not a zip file at all", "a.ckpt: ")],
)
def test_not_a_checkpoint(tmp_path, content, match):
    if content is not None:
        (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(InputError, match=match):
        read_checkpoint(tmp_path / "a.ckpt")


def test_other_tensors(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="no 'state_dict'"):
        read_checkpoint(tmp_path / "a.ckpt")
