"""The folder of models works alone, as part of another program."""

import shutil
import subprocess
import sys
from pathlib import Path

import models

VENDORED = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
import torch.utils.checkpoint

before = set(sys.modules)
import vendored_net

after = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = after - {"vendored_net", "torch"} - sys.stdlib_module_names
assert not foreign, foreign
assert not {"commands", "data", "models", "torchvision", "train"} & set(sys.modules)

network = vendored_net.densenet_bc(10, 4)
network(torch.randn(2, 3, 8, 8)).sum().backward()
assert type(network).__module__ == "vendored_net.densenet"
print(tuple(network.features.conv0.weight.grad.shape))
"""


def test_the_folder_works_under_another_name_with_torch_alone(tmp_path):
    source = Path(models.__file__).parent
    shutil.copytree(source, tmp_path / "vendored_net", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-I", "-B", "-W", "error", "-c", VENDORED, tmp_path]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout == "(8, 3, 3, 3)\n"
