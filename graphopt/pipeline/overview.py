"""What a model consists of: stages, layers, groups that can be pruned and those that cannot, where work and time go."""

from __future__ import annotations

from pydantic import BaseModel, Field

from graphopt.pipeline.result import ModelFacts


class Interface(BaseModel):
    """One graph input or output."""

    name: str
    dtype: str
    dims: list[int | str | None] | None


class LayerFacts(BaseModel):
    """One repeated layer."""

    index: int
    blocks: str
    parameters: int
    time_share: float | None = None
    input: str
    output: str


class HoldFacts(BaseModel):
    """One reason why a group cannot be pruned, and the operand and axis behind it where that can be told."""

    reason: str
    op: str | None = None
    node: str | None = None
    operand: str | None = None
    """``input 0`` or ``output 0`` of the node, or ``graph input``, ``graph output``."""
    value: str | None = None
    axis: int | None = None


class GroupFacts(BaseModel):
    """Units that can only leave together."""

    name: str
    role: str
    size: int
    parameters: int
    share: float
    """Of all the model's parameters."""
    time_share: float | None = None
    """Of the time of a run: nodes that read the group's weights, each by the share of its weights that it touches."""
    layer: int | None = None
    touches: list[str] = Field(default_factory=list)
    """Weights that hold the units, as ``name[axis]``."""
    reasons: list[str] = Field(default_factory=list)
    """Why they cannot be removed; empty when they can."""
    lossy: bool = False
    """Whether they can be removed all the same, if norms may average over fewer units: ``prune`` has to be asked."""
    held_by: list[HoldFacts] = Field(default_factory=list)
    """The reasons once more, each with its place."""


class CoverFacts(BaseModel):
    """What several groups touch together; what is in more than one of them counts once."""

    groups: list[str]
    parameters: int
    share: float
    time_share: float | None = None


class RoleFacts(BaseModel):
    """Everything with one role."""

    role: str
    nodes: int
    parameters: int
    bytes: int
    macs: int
    time_share: float | None = None


class WeightFacts(BaseModel):
    """One weight, in the stage that reads it first."""

    name: str
    dims: list[int]
    parameters: int
    groups: dict[str, float] = Field(default_factory=dict)
    """By role of prunable groups: the share of the weight that lies in them."""


class StageFacts(BaseModel):
    """One step of the model: a residual block, or nodes outside of any."""

    title: str
    block: bool
    """Whether it is a residual block: its result is added to what it starts from."""
    trunk: int | None = None
    layer: int | None = None
    nodes: int
    parameters: int
    share: float
    time_share: float | None = None
    weights: list[WeightFacts] = Field(default_factory=list)
    groups: list[str] = Field(default_factory=list)
    """Names of the prunable groups with units in these weights."""
    frozen: list[str] = Field(default_factory=list)
    """Names of those that cannot be pruned."""


class TimingFacts(BaseModel):
    """How time was measured; shares of time are shares of ``seconds``."""

    shapes: list[str]
    seconds: float
    """Of one run, graph optimisations off; geometric mean over the shapes."""
    provider: str


class Overview(BaseModel):
    """The answer of ``graphopt inspect``."""

    model: ModelFacts
    opset: dict[str, int]
    inputs: list[Interface]
    outputs: list[Interface]
    timing: TimingFacts | None = None
    """None where time was not measured."""
    stages: list[StageFacts] = Field(default_factory=list)
    layers: list[LayerFacts] = Field(default_factory=list)
    prunable: list[GroupFacts] = Field(default_factory=list)
    frozen: list[GroupFacts] = Field(default_factory=list)
    cover: dict[str, CoverFacts] = Field(default_factory=dict)
    """What the prunable groups of each role touch; under ``all`` those of every role."""
    kinds: list[CoverFacts] = Field(default_factory=list)
    """Groups that repeat: of one role, size and number of parameters, and held for one kind of reason."""
    roles: list[RoleFacts] = Field(default_factory=list)
    macs_at: dict[str, int] = Field(default_factory=dict)
    """Sizes of the dynamic dims that multiply-accumulates are counted at."""
    unknown_ops: dict[str, int] = Field(default_factory=dict)
    """Operators without an axis rule; what they touch cannot be pruned."""
    notes: list[str] = Field(default_factory=list)
