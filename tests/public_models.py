"""Configurations of public models, as far as they count parameters, and how many each has."""

from __future__ import annotations

from typing import Any

_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)


def _model(model_type: str, widths: str, tied: bool = False, **more: Any) -> dict[str, Any]:
    sizes = dict(zip(_NAMES, map(int, widths.split())))
    return {"model_type": model_type, "tie_word_embeddings": tied, **sizes, **more}


_QWEN3 = {"head_dim": 128}
_SMOLLM3 = {"pad_token_id": 128004}
_GLM = {"head_dim": 128, "pad_token_id": 151329}

MODELS: dict[str, tuple[dict[str, Any], int]] = {
    # vocabulary, hidden, MLP columns, layers, query heads, KV heads
    "Llama-2-7B": (_model("llama", "32000 4096 11008 32 32 32"), 6_738_415_616),
    "Llama-2-13B": (_model("llama", "32000 5120 13824 40 40 40"), 13_015_864_320),
    "Llama-3.1-8B": (_model("llama", "128256 4096 14336 32 32 8"), 8_030_261_248),
    "Llama-3.2-1B": (_model("llama", "128256 2048 8192 16 32 8", True), 1_235_814_400),
    "Llama-3.2-3B": (_model("llama", "128256 3072 8192 28 24 8", True, head_dim=128), 3_212_749_824),
    "Llama-3.3-70B": (_model("llama", "128256 8192 28672 80 64 8"), 70_553_706_496),
    "TinyLlama-1.1B": (_model("llama", "32000 2048 5632 22 32 4"), 1_100_048_384),
    "SmolLM2-135M": (_model("llama", "49152 576 1536 30 9 3", True), 134_515_008),
    "SmolLM2-360M": (_model("llama", "49152 960 2560 32 15 5", True), 361_821_120),
    "SmolLM2-1.7B": (_model("llama", "49152 2048 8192 24 32 32", True), 1_711_376_384),
    "Yi-1.5-6B": (_model("llama", "64000 4096 11008 32 32 4"), 6_061_035_520),
    "Yi-1.5-9B": (_model("llama", "64000 4096 11008 48 32 4"), 8_829_407_232),
    "Yi-1.5-34B": (_model("llama", "64000 7168 20480 60 56 8"), 34_388_917_248),
    "Mistral-7B-v0.1": (_model("mistral", "32000 4096 14336 32 32 8"), 7_241_732_096),
    "Mistral-7B-v0.3": (_model("mistral", "32768 4096 14336 32 32 8"), 7_248_023_552),
    "Mistral-Nemo-12B": (_model("mistral", "131072 5120 14336 40 32 8", head_dim=128), 12_247_782_400),
    "Mistral-Small-24B": (_model("mistral", "131072 5120 32768 40 32 8", head_dim=128), 23_572_403_200),
    "Ministral-8B": (_model("ministral", "131072 4096 12288 36 32 8", head_dim=128), 8_019_808_256),
    "Qwen2.5-0.5B": (_model("qwen2", "151936 896 4864 24 14 2", True), 494_032_768),
    "Qwen2.5-1.5B": (_model("qwen2", "151936 1536 8960 28 12 2", True), 1_543_714_304),
    "Qwen2.5-3B": (_model("qwen2", "151936 2048 11008 36 16 2", True), 3_085_938_688),
    "Qwen2.5-7B": (_model("qwen2", "152064 3584 18944 28 28 4"), 7_615_616_512),
    "Qwen2.5-14B": (_model("qwen2", "152064 5120 13824 48 40 8"), 14_770_033_664),
    "Qwen2.5-32B": (_model("qwen2", "152064 5120 27648 64 40 8"), 32_763_876_352),
    "Qwen2.5-72B": (_model("qwen2", "152064 8192 29568 80 64 8"), 72_706_203_648),
    "R1-Distill-Qwen-1.5B": (_model("qwen2", "151936 1536 8960 28 12 2"), 1_777_088_000),
    "Qwen3-0.6B": (_model("qwen3", "151936 1024 3072 28 16 8", True, **_QWEN3), 596_049_920),
    "Qwen3-4B": (_model("qwen3", "151936 2560 9728 36 32 8", True, **_QWEN3), 4_022_468_096),
    "Qwen3-8B": (_model("qwen3", "151936 4096 12288 36 32 8", **_QWEN3), 8_190_735_360),
    "Qwen3-14B": (_model("qwen3", "151936 5120 17408 40 40 8", **_QWEN3), 14_768_307_200),
    "Qwen3-32B": (_model("qwen3", "151936 5120 25600 64 64 8", **_QWEN3), 32_762_123_264),
    "Gemma-2B": (_model("gemma", "256000 2048 16384 18 8 1", True, head_dim=256), 2_506_172_416),
    "Gemma-7B": (_model("gemma", "256000 3072 24576 28 16 16", True, head_dim=256), 8_537_680_896),
    "Gemma-2-2B": (_model("gemma2", "256000 2304 9216 26 8 4", True, head_dim=256), 2_614_341_888),
    "Gemma-2-9B": (_model("gemma2", "256000 3584 14336 42 16 8", True, head_dim=256), 9_241_705_984),
    "Gemma-2-27B": (_model("gemma2", "256000 4608 36864 46 32 16", True, head_dim=128), 27_227_128_320),
    "Gemma-3-270M": (_model("gemma3_text", "262144 640 2048 18 4 1", True, head_dim=256), 268_098_176),
    "Gemma-3-1B": (_model("gemma3_text", "262144 1152 6912 26 4 1", True, head_dim=256), 999_885_952),
    "Phi-3-mini": (_model("phi3", "32064 3072 8192 32 32 32"), 3_821_079_552),
    "Phi-3-medium": (_model("phi3", "32064 5120 17920 40 40 10"), 13_960_238_080),
    "Phi-4": (_model("phi3", "100352 5120 17920 40 40 10", pad_token_id=100351), 14_659_507_200),
    "Phi-4-mini": (_model("phi3", "200064 3072 8192 32 24 8", True), 3_836_021_760),
    "OLMo-2-1B": (_model("olmo2", "100352 2048 8192 16 16 16"), 1_484_916_736),
    "OLMo-2-7B": (_model("olmo2", "100352 4096 11008 32 32 32"), 7_298_617_344),
    "OLMo-2-13B": (_model("olmo2", "100352 5120 13824 40 40 40"), 13_716_198_400),
    "OLMo-2-32B": (_model("olmo2", "100352 5120 27648 64 40 8"), 32_234_279_936),
    "OLMo-3-7B": (_model("olmo3", "100278 4096 11008 32 32 32"), 7_298_011_136),
    "Granite-3.3-2B": (_model("granite", "49159 2048 8192 40 32 8", True), 2_533_539_840),
    "Granite-3.1-8B": (_model("granite", "49155 4096 12800 40 32 8", True), 8_170_848_256),
    "SmolLM3-3B": (_model("smollm3", "128256 2048 11008 36 16 4", True, **_SMOLLM3), 3_075_098_624),
    "GLM-4-9B-0414": (_model("glm4", "151552 4096 13696 40 32 2", attention_bias=True, **_GLM), 9_400_279_040),
    "glm-4-9b-chat": (_model("glm", "151552 4096 13696 40 32 2", attention_bias=True, **_GLM), 9_399_951_360),
    "Command-R": (_model("cohere", "256000 8192 22528 40 64 64", True), 34_980_831_232),
    "Command-R7B": (_model("cohere2", "256000 4096 14336 32 32 8", True), 8_028_033_024),
    "EXAONE-4.0-1.2B": (_model("exaone4", "102400 2048 4096 30 32 8", True, head_dim=64), 1_279_391_488),
    "EXAONE-4.0-32B": (_model("exaone4", "102400 5120 27392 64 40 8", head_dim=128), 32_003_216_384),
    "Seed-OSS-36B": (
        _model("seed_oss", "155136 5120 27648 64 80 8", head_dim=128, attention_bias=True),
        36_151_104_512,
    ),
    "ERNIE-4.5-0.3B": (_model("ernie4_5", "103424 1024 3072 18 16 2", True, head_dim=128), 360_748_032),
    "Qwen3-30B-A3B": (
        _model("qwen3_moe", "151936 2048 6144 48 32 4", head_dim=128, moe_intermediate_size=768, num_experts=128),
        30_532_122_624,
    ),
    "Mixtral-8x7B": (_model("mixtral", "32000 4096 14336 32 32 8", num_local_experts=8), 46_702_792_704),
    "OLMoE-1B-7B": (
        _model("olmoe", "50304 2048 1024 16 16 16", num_experts=64, num_experts_per_tok=8),
        6_919_161_856,
    ),
    "Apertus-8B": (_model("apertus", "131072 4096 21504 32 32 8"), 8_053_338_176),
}
