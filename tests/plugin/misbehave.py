"""Passes of a third party that break the contract on purpose, one way each, and a few that keep it."""

from __future__ import annotations

import time

import numpy as np
import onnx_ir as ir
from pydantic import Field

from graphopt.transform import Change, Declined, Fidelity, Order, Pass, PassConfig, Plan


class NoConfig(PassConfig):
    """No parameters."""


class Base(Pass[NoConfig]):
    fidelity = Fidelity.EXACT
    order = Order.STRUCTURE
    Config = NoConfig

    def plan(self, view, ctx):
        return Plan(changes=(Change("graph", "as it was", "as it should not be"),))

    def apply(self, editor, plan):
        raise NotImplementedError


def weights(model):
    """Float initializers, the largest first."""
    found = [v for v in model.graph.initializers.values() if v.const_value.dtype == ir.DataType.FLOAT]
    return sorted(found, key=lambda v: (-v.const_value.size, v.name))


class WrongNumbers(Base):
    """Negates the largest weight."""

    name = "wrong-numbers"

    def apply(self, editor, plan):
        value = weights(editor.model)[0]
        editor.set_initializer(value, -value.const_value.numpy())


class SlightlyWrong(Base):
    """Claims EXACT, and moves every weight by one part in a thousand."""

    name = "slightly-wrong"

    def apply(self, editor, plan):
        for value in weights(editor.model):
            editor.set_initializer(value, value.const_value.numpy() * np.float32(1.001))


class InvalidGraph(Base):
    """Gives a node an attribute that its operator does not have."""

    name = "invalid-graph"

    def apply(self, editor, plan):
        node = next(n for n in editor.graph if n.op_type == "MatMul")
        editor.set_attribute(node, "no_such_attribute", 1)


class Dangling(Base):
    """Makes a node read a value that nothing defines."""

    name = "dangling"

    def apply(self, editor, plan):
        node = next(n for n in editor.graph if n.op_type == "MatMul")
        node.replace_input_with(0, ir.Value(name="nowhere"))


class WrongShapes(Base):
    """Makes a weight too small: valid to the checker, refused by the runtime."""

    name = "wrong-shapes"

    def apply(self, editor, plan):
        value = weights(editor.model)[0]
        editor.set_initializer(value, np.ascontiguousarray(value.const_value.numpy()[:-1]))


class ChangedInterface(Base):
    """Renames an output."""

    name = "changed-interface"

    def apply(self, editor, plan):
        editor.graph.outputs[0].name = "renamed"


class FrozenDims(Base):
    """Fixes a symbolic dim of an input."""

    name = "frozen-dims"

    def apply(self, editor, plan):
        value = editor.graph.inputs[0]
        value.shape = ir.Shape([1, *list(value.shape)[1:]])


class Crash(Base):
    """Raises in apply."""

    name = "crash"

    def apply(self, editor, plan):
        raise ZeroDivisionError("on purpose")


class Exits(Base):
    """Ends the whole program in apply."""

    name = "exits"

    def apply(self, editor, plan):
        raise SystemExit(0)


class CrashPlanning(Base):
    """Raises in plan."""

    name = "crash-planning"

    def plan(self, view, ctx):
        raise KeyError("on purpose")


class NotAPlan(Base):
    """Returns something else than a plan."""

    name = "not-a-plan"

    def plan(self, view, ctx):
        return ["change everything"]


class FalseClaim(Base):
    """Claims a change and makes none."""

    name = "false-claim"

    def apply(self, editor, plan):
        pass


class SecretChange(Base):
    """Claims no change and edits while planning."""

    name = "secret-change"

    def plan(self, view, ctx):
        value = weights(view.model)[0]
        value.const_value = ir.tensor(value.const_value.numpy() * 2, name=value.name)
        return Plan()


class NothingToDo(Base):
    """Looks, finds nothing, says so."""

    name = "nothing-to-do"

    def plan(self, view, ctx):
        return Plan(declined=(Declined("graph", "nothing of interest"),), notes=("looked everywhere",))


class BadResolution(Base):
    """Pins a parameter that its Config does not have."""

    name = "bad-resolution"

    def plan(self, view, ctx):
        return Plan(changes=(Change("graph", "a", "b"),), resolved={"speed": "ludicrous"})

    def apply(self, editor, plan):
        pass


class Slow(Base):
    """Exact, and does the work of the first product many times over."""

    name = "slow"

    def apply(self, editor, plan):
        node = next(n for n in editor.graph if n.op_type == "MatMul")
        out = node.outputs[0]
        side = out
        for _ in range(60):
            (side,) = editor.insert_node("Sin", [side], after=side.producer())
        zero = editor.add_initializer("zero", np.zeros((), np.float32))
        (nothing,) = editor.insert_node("Mul", [side, zero], after=side.producer())
        readers = [u for u in out.uses() if u.node.op_type != "Sin"]
        (total,) = editor.insert_node("Add", [out, nothing], after=nothing.producer())
        for use in readers:
            use.node.replace_input_with(use.idx, total)


class ScaleConfig(PassConfig):
    """How much noise."""

    amount: float = Field(default=1.0, ge=0, le=1)
    """Noise relative to the weight's spread."""


class Noise(Pass[ScaleConfig]):
    """Adds seeded noise to the largest weight: lossy, and weaker when the guard refuses."""

    name = "noise"
    fidelity = Fidelity.LOSSY
    order = Order.STRUCTURE
    strength = "amount"
    Config = ScaleConfig
    idempotent = False

    def plan(self, view, ctx):
        if self.config.amount == 0:
            return Plan()
        value = weights(view.model)[0]
        return Plan((Change(value.name, "clean", f"noise {self.config.amount:g}"),), payload=(value.name, ctx.seed))

    def apply(self, editor, plan):
        name, seed = plan.payload
        value = editor.graph.initializers[name]
        array = value.const_value.numpy()
        noise = np.random.default_rng(seed).standard_normal(array.shape).astype(array.dtype)
        editor.set_initializer(value, array + 2 * self.config.amount * array.std() * noise)


class ChooseConfig(PassConfig):
    """A decision."""

    mode: str = "auto"
    """auto, even or odd; auto looks at the clock."""


class Choose(Pass[ChooseConfig]):
    """Takes a decision that depends on time unless told: what it resolves must replay."""

    name = "choose"
    fidelity = Fidelity.EXACT
    order = Order.FUSION
    Config = ChooseConfig

    def plan(self, view, ctx):
        mode = self.config.mode
        if mode == "auto":
            mode = "even" if time.perf_counter_ns() // 1000 % 2 == 0 else "odd"
        return Plan((Change("graph", "undecided", mode),), resolved={"mode": mode}, payload=mode)

    def apply(self, editor, plan):
        node = next(n for n in editor.graph if n.op_type == "MatMul")
        out = node.outputs[0]
        for _ in range(2 if plan.payload == "even" else 4):
            (out2,) = editor.insert_node("Neg", [out], after=out.producer())
            for use in [u for u in out.uses() if u.node is not out2.producer()]:
                use.node.replace_input_with(use.idx, out2)
            out = out2


class Rename(Base):
    """Keeps its word: puts an Identity behind the first product."""

    name = "keeps-its-word"

    def apply(self, editor, plan):
        node = next(n for n in editor.graph if n.op_type == "MatMul")
        out = node.outputs[0]
        (copy,) = editor.insert_node("Identity", [out], after=node)
        for use in [u for u in out.uses() if u.node is not copy.producer()]:
            use.node.replace_input_with(use.idx, copy)


class Interrupted(Base):
    """The user presses Ctrl-C while it works."""

    name = "interrupted"

    def apply(self, editor, plan):
        raise KeyboardInterrupt


class Sleepy(Base):
    """Takes its time."""

    name = "sleepy"

    def apply(self, editor, plan):
        time.sleep(60)


class Misnamed(Base):
    """Calls itself something else than its entry point does."""

    name = "another-name"


NOT_A_PASS = 42
