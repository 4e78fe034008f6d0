"""The forms that weights can take, each worked out for every site that has it, ready to be written for some of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.precision.storage import find_storable, store
from graphopt.quantization.drafting import Drafter
from graphopt.quantization.groups import Settings
from graphopt.quantization.nbits import NBitsWriter
from graphopt.quantization.sites import Linear, Site, Table
from graphopt.quantization.targets import Mode, target_named
from graphopt.quantization.weight_drafting import WeightDrafter
from graphopt.quantization.writer import Int8Writer
from graphopt.transform import PassContext

FormName = Literal["float16", "int8-static", "int8-dynamic", "int4"]
FORMS: tuple[FormName, ...] = get_args(FormName)
_BALANCE = 0.2  #: share that a gain has to bring an activation's error down to, when it costs a Mul; as int8 has it
_BLOCK = 128  #: weights of four bits that share a scale


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """One way to store and to multiply weights."""

    name: FormName
    sites: Mapping[str, Site]  #: that can take it, by name
    sizes: Mapping[str, int]  #: bytes of a site's weight in it, by name of the site
    write: Callable[[GraphEditor, Collection[str]], None]  #: gives it to the named sites of the editor's model
    declined: Mapping[str, str] = field(default_factory=dict)  #: why the other sites cannot, by name
    computes: bool = True  #: whether anything but the stored bytes changes when the model is loaded


def make_form(name: FormName, model: ir.Model, ctx: PassContext, sites: Sequence[Site]) -> Form:
    """The form of that name for those of ``sites`` that can take it.

    Without inputs ranges are found at run time, and weights of four bits are rounded to nearest.
    """
    if name == "float16":
        return _half(model, sites)
    if name == "int4":
        return _four_bits(model, ctx, sites)
    return _int8(name, "static" if name == "int8-static" else "dynamic", model, ctx, sites)


def _half(model: ir.Model, sites: Sequence[Site]) -> Form:
    """Stored in 16 bits behind a Cast that loading folds."""
    homes: dict[str, list[Site]] = {}
    for site in sites:
        homes.setdefault(site.weight.name or "", []).append(site)
    found, left = find_storable(model, ir.DataType.FLOAT16, lambda value: None if value.name in homes else "no site")
    sizes = {site.name: stored.tensor.nbytes for stored in found for site in homes[stored.value.name or ""]}
    declined = {site.name: item.reason for item in left for site in homes.get(item.site, ())}

    def write(editor: GraphEditor, names: Collection[str]) -> None:
        wanted = {site.weight.name for site in sites if site.name in names}
        chosen, _ = find_storable(
            editor.model, ir.DataType.FLOAT16, lambda value: None if value.name in wanted else "another form"
        )
        for stored in chosen:
            store(editor, stored)
        editor.drop_dead()

    able = {site.name: site for site in sites if site.name in sizes}
    return Form("float16", able, sizes, write, declined, computes=False)


def _int8(name: FormName, mode: Mode, model: ir.Model, ctx: PassContext, sites: Sequence[Site]) -> Form:
    target = replace(target_named(ctx.target), least=0, narrowest=0)  # what is too small, the search times
    declined: dict[str, str] = {}

    def able(site: Site, reason: str | None) -> bool:
        if reason is not None:
            declined[site.name] = reason
        return reason is None

    floats = [site for site in sites if able(site, _no_float32(site) or target.objection(site))]
    drafter = Drafter(model, ctx, floats, target=target, balance=_BALANCE)
    choices, _ = drafter.propose(mode)

    def obstacle(site: Site) -> str | None:
        if site.name not in choices.codes:
            return drafter.broken[site.name]
        if mode == "static" and not (isinstance(site, Linear) and site.activation.name in choices.ranges):
            return "its ranges cannot be fixed"  # a table has none, an LSTM finds its own
        return drafter.impossible(mode, choices, site)

    known = {site.name: site for site in floats if able(site, obstacle(site))}

    def write(editor: GraphEditor, names: Collection[str]) -> None:
        Int8Writer.rewrite(editor, drafter.restrict(choices, [known[n] for n in known if n in names]))

    return Form(name, known, {n: choices.codes[n].nbytes for n in known}, write, declined)


def _no_float32(site: Site) -> str | None:
    return None if site.dtype is ir.DataType.FLOAT else "its weight is not float32"


def _four_bits(model: ir.Model, ctx: PassContext, sites: Sequence[Site]) -> Form:
    settings = Settings(
        bits=4, block=_BLOCK, symmetric=False, method="gptq", embeddings=4, form="auto", max_error=1.0
    )  # fmt: skip
    able = [s for s in sites if isinstance(s, Table) or not (s.convolves or s.recurrent or s.packed_attention)]
    drafter = WeightDrafter(model, ctx, able, settings)
    choices = drafter.propose()
    known = {site.name: site for site in able if site.name in choices.codes}
    reason = "ONNX Runtime multiplies by weights of four bits in MatMul and Gemm only"
    declined = {site.name: drafter.coder.broken.get(site.name, reason) for site in sites if site.name not in known}

    def write(editor: GraphEditor, names: Collection[str]) -> None:
        NBitsWriter.rewrite(editor, choices.only(names))

    return Form("int4", known, {n: choices.codes[n].nbytes for n in known}, write, declined)
