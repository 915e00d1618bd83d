"""The command line of the benchmarks: `FIGURE key=value …`."""

import json
import sys
from collections.abc import Callable

import torch
from measuring import DEVICE, Figures


def run(functions: dict[str, Callable[..., Figures]]) -> None:
    """The command line, `FIGURE key=value …`: prints what one of the functions has found."""
    figure, *given = sys.argv[1:]
    kwargs: Figures = {"name": "smollm2-135m"}
    for pair in given:
        key, _, value = pair.partition("=")
        key = "name" if key == "model" else key
        if key in ("runs", "adapters"):
            kwargs[key] = [int(n) for n in value.split(",")]
        else:
            kwargs[key] = {"true": True, "false": False}.get(value, int(value) if value.isdigit() else value)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    head = {"command": " ".join(sys.argv[1:]), "device": device, "torch": torch.__version__}
    print(json.dumps(head | functions[figure](**kwargs), indent=2))
