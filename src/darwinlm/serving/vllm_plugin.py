"""What vLLM calls in each of its processes, by the entry point group `vllm.general_plugins`; loads nothing else of ours."""

# pyright: reportMissingImports=false


def register() -> None:
    """Let vLLM take its own layers for our checkpoints, so that none of the code in them is run."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("DarwinLMForCausalLM", "darwinlm.serving.vllm_model:DarwinLMForCausalLM")
