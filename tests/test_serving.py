"""The plugin for vLLM as its processes meet it; vLLM itself is run by `make test-engines`."""

from __future__ import annotations

import subprocess
import sys

AS_VLLM_DOES = """
import sys, types
before, registered = set(sys.modules), {}
vllm = sys.modules["vllm"] = types.ModuleType("vllm")
vllm.ModelRegistry = types.SimpleNamespace(register_model=registered.__setitem__)
from darwinlm.serving.vllm_plugin import register
register()
print(*registered.items())
print(*sorted(name for name in set(sys.modules) - before if name.split(".")[0] not in sys.stdlib_module_names))
"""


def test_registering_imports_nothing_else():
    done = subprocess.run([sys.executable, "-c", AS_VLLM_DOES], capture_output=True, text=True, check=True)
    registered, imported = done.stdout.splitlines()
    assert registered == "('DarwinLMForCausalLM', 'darwinlm.serving.vllm_model:DarwinLMForCausalLM')"
    assert imported.split() == [
        "darwinlm",
        "darwinlm.errors",
        "darwinlm.keywords",
        "darwinlm.serving",
        "darwinlm.serving.vllm_plugin",
        "darwinlm.version",
        "vllm",
    ]
