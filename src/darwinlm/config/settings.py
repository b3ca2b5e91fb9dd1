"""Every setting of a run: one frozen dataclass per stage, gathered in `RunConfig`.

Units stand in each field's docstring, constraints in its type; command line, `config.yaml` and its schema are derived from
these classes. What settings must hold together is in `checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from darwinlm.config.prediction import PlanConfig
from darwinlm.config.training import Count, Natural, Positive, Share, TrainConfig, Weight

GgmlFormat = Literal["q8_0", "q6_k", "q5_1", "q5_0", "q5_k", "q4_1", "q4_0", "iq4_nl", "q4_k", "q3_k", "q2_k"]
"""Types of ggml that weights can be stored in."""
PackedFormat = Literal["w8a16", "w8a16_64", "w8a16_32", "w4a16", "w4a16_64", "w4a16_32"]
"""Whole numbers of 8 or 4 bits with a scale for every 128, 64 or 32 columns, as vLLM reads them."""
Format = Literal[GgmlFormat, PackedFormat]


@dataclass(frozen=True)
class BlocksConfig:
    """Text as fixed token blocks in four disjoint splits."""

    sequence_length: Annotated[int, Ge(2)] = 2048
    """Tokens in a block."""
    hessian: Count = 512
    """Blocks that the Hessians are accumulated on."""
    train: Count = 256
    """Blocks that candidates are trained on during the search."""
    select: Count = 64
    """Blocks that candidates are scored on during the search."""
    held_out: Count = 64
    """Blocks that only the final evaluation reads."""
    held_out_data: str | None = None
    """Separate source of the held-out blocks, read from its beginning; by default they are those of the run that the model
    comes from, where it had the same data, and else drawn from the same data."""
    text_field: str = "text"
    """Field that holds the text in rows of files and hub data sets; of several with commas, the first one there."""
    pool_tokens: Count = 8_000_000
    """Tokens that are read before blocks are drawn from them at random; more are read where the splits need more."""


@dataclass(frozen=True)
class DatabaseConfig:
    """Second-order levels of every module."""

    levels: Annotated[int, Ge(2)] = 10
    """Steps from dense (level 0) to a module that is gone (the last level)."""
    attention_unit: Literal["auto", "kv_group", "balanced", "query_head"] = "auto"
    """What leaves attention together; with grouped queries `auto` is kv_group, or balanced where KV groups give fewer than
    four steps and that gives more."""
    rounding: Literal["equal", "paper"] = "equal"
    """`equal`: as many equal steps as a kind of module allows; `paper`: equations 5 and 6 as printed."""
    multiple_of: Count = 32
    """MLP widths are multiples of this many columns."""
    experts_lose: Literal["both", "experts", "columns"] = "both"
    """What leaves a mixture of experts: whole experts, columns of each, or both in the same proportion."""
    tensor_parallel: Count = 1
    """Devices that split the heads of the pruned model: every level keeps query and KV heads in multiples of it."""
    attention_columns: list[int] | None = None
    """Explicit table: columns of the attention output matrix removed at each level, 0 first, all last."""
    mlp_columns: list[int] | None = None
    """Explicit table: columns of the MLP output matrix removed at each level, 0 first, all last."""
    rel_damp: Positive | Literal["auto"] = "auto"
    """Damping of the Hessian, relative to the mean of its diagonal; `auto` is the best of several for each module, by
    the error on calibration blocks held back (1e-2 where there is one block)."""
    batch_sequences: Count = 8
    """Blocks in one forward pass of the calibration."""
    hidden_states: Literal["auto", "device", "host", "disk"] = "auto"
    """Where the activations of all calibration blocks lie; `auto` is the first that has the room."""


@dataclass(frozen=True)
class TargetConfig:
    """What the pruned model must hold: all that is asked holds at once. Whoever names a target replaces a preset's."""

    level: float | None = None
    """Mean level of each kind of module, in steps of `database.levels`; fractions are allowed."""
    parameters: str | float | None = None
    """Most parameters: `2.7B`, `350M`, a number, or `60%` of the dense model's, which is asked where nothing is."""
    parameters_of: Literal["model", "layers"] = "model"
    """What counts as parameters: the whole model, or its layers without embeddings and head."""
    speedup: str | float | None = None
    """Least speed-up for the workload, such as `2.0x`, predicted by the latency table."""
    memory: str | float | None = None
    """Most memory: `8GB`, `6GiB`, or `60%` of the dense model's. Weights and KV cache, in the checkpoint's dtype; with formats
    the whole file, GGUF or safetensors, and the KV cache in 16 bits."""
    formats: list[Format] = field(default_factory=list)
    """Formats that every module may have at every width, beside the checkpoint's own: what is searched is then width and format
    of each at once, within `memory`. Either llama.cpp's, such as [q8_0, q4_0], of which those with a k or iq in their names
    need it, or vLLM's, such as [w8a16, w4a16]."""
    embedding_format: GgmlFormat | None = None
    """Format of embedding and head in GGUF; by default the checkpoint's own."""
    shape: Literal["free", "stock"] = "free"
    """`stock`: layers are dropped whole and all others alike, so that the result is a model of the family's stock class, which
    every engine loads as it is; `free`: every module has a width of its own."""
    workload: Literal["prefill", "decode"] = "prefill"
    """What must be faster: reading the context until the first token is there, or writing tokens after it."""
    batch: Count = 1
    """Sequences at once, of the workload and in the KV cache."""
    context: Natural = 512
    """Tokens of each sequence, of the workload and in the KV cache; with formats 0 leaves the KV cache out."""
    latency_table: str | None = None
    """File that `darwinlm bench MODEL --table` made on the machine that the model is to be fast on."""


@dataclass(frozen=True)
class Stage:
    """One step of training-aware selection (Algorithm 1 of arXiv 2502.07780)."""

    survivors: int
    """Candidates that stay."""
    train_tokens: int
    """Tokens that each candidate is trained on before it is scored."""
    select_tokens: int
    """Tokens that each candidate is scored on."""


@dataclass(frozen=True)
class SearchConfig:
    """Evolution with training-aware selection."""

    generations: Natural = 0
    """Generations of the evolution from the start on; 0: the start is the result."""
    offspring: Count = 16
    """Mutated candidates of a generation."""
    survivors: list[int] = field(default_factory=lambda: [8, 4, 2, 1])
    """Candidates that stay after each selection step; decreasing, the last is 1."""
    train_tokens: list[int] = field(default_factory=lambda: [10_000, 50_000, 100_000, 200_000])
    """Tokens that each candidate is trained on, per selection step; a step's are the beginning of a longer one's."""
    select_tokens: list[int] = field(default_factory=lambda: [1024, 2048, 4096, 8192])
    """Tokens that each candidate is scored on, per selection step."""
    training: Literal["cross_entropy", "distillation", "refit"] = "cross_entropy"
    """What candidates are trained by: cross entropy (the paper), the KL to the dense model, or the refit, in closed form."""
    learning_rate: Weight = 1e-5
    """AdamW's learning rate in the trial training."""
    batch_sequences: Count = 1
    """Blocks in one optimizer step of the trial training."""
    switches: Count = 3
    """Level switches of an offspring are min(u1, u2) with u drawn from 1 to this number."""
    diverse: bool = False
    """Let genomes of other kinds compete in the first generation: rich in attention or in MLPs, deep, wide, of front or end."""
    start: Literal["linearized", "uniform"] = "linearized"
    """The first parent: the best allocation of levels by linearized costs, or every module at the target (the paper)."""
    start_tokens: Annotated[int, Ge(2)] = 16_384
    """Tokens of blocks.train that costs are linearized on, and of blocks.select that allocations are scored on; all of the
    split where it has fewer."""
    start_rounds: Natural = 8
    """Most rounds of linearizing and proposing; the start ends earlier where a round finds nothing better."""
    sequence_tokens: Natural = 256
    """Tokens from the beginning of a block in that and in selection: many short texts tell more than few long ones. 0: all."""
    continue_training: bool = True
    """Keep survivors between selection steps where memory allows, instead of training them anew: the scores are equal."""
    weights: Literal["auto", "float32", "bfloat16"] = "auto"
    """Candidates' weights in trial training; bfloat16 keeps what rounding cuts off. `auto` is the run's arithmetic."""
    gradient_checkpointing: bool = False
    """Make activations again in the backward pass of the trial training: a third slower, and several times smaller."""
    confidence: Weight = 0.0
    """Standard errors by which a child must beat the parent in the last selection step; 0: by anything (the paper)."""
    check_every: Natural = 10
    """Generations between scores of the parent on the held-out blocks, for the eye alone; 0 never."""
    patience: Natural = 0
    """Stop after this many generations without a better candidate; 0 never."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The selection steps, first to last."""
        return tuple(map(Stage, self.survivors, self.train_tokens, self.select_tokens))


@dataclass(frozen=True)
class RefitConfig:
    """Refit of the found model's output matrices on its own inputs, toward the dense model's residual stream."""

    tokens: Natural = 131_072
    """Tokens of blocks.hessian that it is made on, at most all of them; 0 leaves it out (the paper)."""
    choose_again: bool = True
    """Choose the columns of every MLP once more, as many, by what the pruned model itself feeds it."""


@dataclass(frozen=True)
class ShearedConfig:
    """ShearedLLaMA, one of the methods of a comparison: masks learned together with the weights."""

    tokens: Natural = 0
    """Tokens of its training; 0: as many as all candidates of the search are trained on, or of one generation where it has none."""
    learning_rate: Weight = 1e-4
    """AdamW's learning rate for the weights; 0 leaves them as they are and learns masks alone."""
    mask_learning_rate: Positive = 0.05
    """Adam's learning rate for the masks."""
    warm_up: Share = 0.5
    """Part of the training in which the target goes from the dense model to the budget."""


@dataclass(frozen=True)
class BenchConfig:
    """Speed and memory of checkpoints that take turns."""

    batch_sizes: Annotated[list[Count], MinLen(1)] = field(default_factory=lambda: [1])
    """Sequences that are read, and then continued, at once."""
    context_lengths: Annotated[list[Count], MinLen(1)] = field(default_factory=lambda: [512])
    """Tokens of each sequence that are read."""
    decode_tokens: Count = 32
    """Tokens written after the first one, one forward pass for each."""
    repeats: Count = 9
    """Rounds that count; in each, every model reads and writes once."""
    warmups: Natural = 1
    """Rounds before them that do not count."""
    threads: Count | None = None
    """CPU threads; by default as many as torch takes."""
    engine: Literal["auto", "transformers", "llama.cpp", "vllm", "vllm-server"] = "auto"
    """What runs the models: `auto` is llama.cpp for .gguf files and else transformers; vLLM offline, or its server under load."""
    gguf: str = "f16"
    """Type of the GGUF files that llama.cpp gets of checkpoints, such as f16 or q4_k_m."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run; `config.yaml` of a run directory holds it complete, as resolved."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012

    model: str = ""
    """Path or hub id of the dense model."""
    data: str = ""
    """Text: `fineweb-edu`, a hub data set such as `owner/name:configuration:split`, a file (.txt, .md, .jsonl, .json, .csv,
    .parquet, compressed or not), a folder of them, `stdlib`, or a mixture such as `fineweb-edu=0.7,notes/=0.3`."""
    output: str = ""
    """Run directory; an existing run of the same model and settings is continued."""
    seed: int = 0
    """Seed of every random choice."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or another torch device; a training takes one of these three."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; `auto` is bfloat16 on a GPU and float32 on a CPU. Hessians and losses are
    float32 always; for the weights of candidates see `search.weights`."""
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    refit: RefitConfig = field(default_factory=RefitConfig)
    sheared: ShearedConfig = field(default_factory=ShearedConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.output).expanduser()
