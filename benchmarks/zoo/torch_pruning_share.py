"""Which parameters Torch-Pruning can remove from a model of the catalogue. Needs torch-pruning, nothing of graphopt's.

    python -m benchmarks.zoo.torch_pruning_share NAME

Every parameter of a copy is filled with its elements' own numbers, the copy is pruned, and what is still there is read
off. Half of the units of every group are removed, then in another copy the other half: an element is prunable when
either run removes it. Attention is pruned once by whole heads and once by the dims of all heads. A group counts only if
the model still runs with it pruned and its outputs keep their shapes; which groups break the model is found by
bisection. Attributes that spell out a number of heads are corrected, as Torch-Pruning's own examples do.

Groups that run through a LayerNorm or RMSNorm are told apart: the statistics change with them, so that removing their
units is not the same as masking them.

Prints JSON: all parameters, prunable ones (``exact``: without those groups), groups that worked, and the others.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from benchmarks.zoo.catalogue import ZOO, Inputs

_QUERIES = ("query", "q_proj", "q", "c_attn")
_KEYS = ("key", "value", "k_proj", "v_proj", "k", "v")
_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
_WIDTHS = ("all_head_size", "inner_dim", "embed_dim", "split_size")


@dataclass(frozen=True)
class Way:
    """How attention is pruned, and whether the first or the second half of all units goes."""

    whole_heads: bool
    first: bool


def attentions(model: nn.Module) -> list[tuple[nn.Module, nn.Linear, list[nn.Linear]]]:
    """Each attention with its query projection and those of keys and values (none where all three are packed)."""
    found = []
    for module in model.modules():
        query = next(
            (getattr(module, name) for name in _QUERIES if isinstance(getattr(module, name, None), nn.Linear)), None
        )
        if query is not None:
            others = [getattr(module, name) for name in _KEYS if isinstance(getattr(module, name, None), nn.Linear)]
            found.append((module, query, others))
    return found


def head_counts(model: nn.Module) -> dict[nn.Module, int]:
    """Heads of every projection; keys and values may have fewer than queries."""
    counts: dict[nn.Module, int] = {}
    for module, query, others in attentions(model):
        heads = next((getattr(module, name) for name in _COUNTS if hasattr(module, name)), None)
        heads = module.config.num_attention_heads if heads is None else heads
        counts[query] = heads
        counts |= {other: other.out_features * heads // query.out_features for other in others}
    return counts


def correct_attributes(model: nn.Module, counts: dict[nn.Module, int]) -> None:
    """Tell each attention how many heads, of what width, it has now."""
    for module, query, others in attentions(model):
        width = query.out_features if others else query.out_features // 3
        heads = counts[query]
        values = {**dict.fromkeys(_COUNTS, heads), **dict.fromkeys(_WIDTHS, width)}
        values |= dict.fromkeys(("head_dim", "attention_head_size", "key_value_proj_dim"), width // heads)
        for name, value in values.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value)


def prune(model: nn.Module, inputs: Inputs, way: Way, allowed: Callable[[str], bool]) -> dict[str, bool]:
    """Prune half of every allowed group in place; all by name, with whether each runs through a normalisation."""
    normalised = {
        part
        for module in model.modules()
        if "Norm" in type(module).__name__ and "BatchNorm" not in type(module).__name__
        for part in (module, *module.parameters(recurse=False))
    }
    counts = head_counts(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            model,
            inputs,
            importance=partial(_by_position, way.first),
            pruning_ratio=0.5,
            num_heads=counts,
            in_channel_groups={},
            out_channel_groups={},
            prune_num_heads=way.whole_heads,
            prune_head_dims=not way.whole_heads,
            head_pruning_ratio=0.5 if way.whole_heads else 0.0,
            root_module_types=[tp.ops.TORCH_CONV, tp.ops.TORCH_LINEAR, tp.ops.TORCH_LSTM, tp.ops.TORCH_EMBED],
        )
        names = {}
        for group in pruner.step(interactive=True):
            root = group[0].dep
            name = f"{root.target.name.split(' ')[0]} {root.handler.__name__}"
            names[name] = any(item.dep.target.module in normalised for item in group)
            if allowed(name):
                group.prune()
    correct_attributes(model, counts)
    return names


def _by_position(first: bool, group: Any) -> Tensor:
    places = torch.arange(len(group[0].idxs), dtype=torch.float32)
    return places if first else -places


def works(model: nn.Module, inputs: Inputs, way: Way, chosen: Collection[str]) -> str | None:
    """What is wrong once the chosen groups are pruned; None when the model still does its job."""
    trial = copy.deepcopy(model)
    expected = _shapes(model, inputs)
    try:
        prune(trial, inputs, way, chosen.__contains__)
        found = _shapes(trial, inputs)
    except Exception as error:  # whatever a broken model raises
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    return None if found == expected else f"outputs change from {expected} to {found}"


def _shapes(model: nn.Module, inputs: Inputs) -> list[tuple[int, ...]]:
    with torch.no_grad():
        outputs = model(**inputs)
    return [tuple(out.shape) for out in (outputs if isinstance(outputs, tuple) else (outputs,))]


def sound(model: nn.Module, inputs: Inputs, way: Way, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """The groups that can be pruned together, and what is wrong with each other one."""
    good: list[str] = []
    bad: dict[str, str] = {}
    pending = [names]
    while pending:
        batch = pending.pop()
        problem = works(model, inputs, way, [*good, *batch]) if batch else None
        if problem is None:
            good += batch
        elif len(batch) == 1:
            bad[batch[0]] = problem
        else:
            middle = len(batch) // 2
            pending += [batch[middle:], batch[:middle]]
    return good, bad


def removed(model: nn.Module, inputs: Inputs, way: Way, chosen: Collection[str]) -> dict[str, Tensor]:
    """For each parameter, which of its elements go."""
    numbered = copy.deepcopy(model)
    parameters = dict(numbered.named_parameters())
    names: dict[int, list[str]] = {}
    for name, parameter in numbered.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    aliases = {name: names[id(parameter)] for name, parameter in parameters.items()}
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float32).reshape(parameter.shape)
    prune(numbered, inputs, way, chosen.__contains__)
    left = dict(numbered.named_parameters(remove_duplicate=False))
    gone = {}
    for name, size in sizes.items():
        gone[name] = torch.ones(size, dtype=torch.bool)
        for alias in aliases[name]:
            gone[name][left[alias].detach().reshape(-1).long()] = False
    return gone


def measure(name: str) -> dict[str, Any]:
    """The whole result for one model."""
    entry = ZOO[name]
    model, inputs = entry.made(), entry.inputs(2)
    total: dict[str, Tensor] = {n: torch.zeros(p.numel(), dtype=torch.bool) for n, p in model.named_parameters()}
    exact = copy.deepcopy(total)
    problems: dict[str, str] = {}
    groups = set()
    for whole_heads in (True, False) if head_counts(model) else (False,):
        for first in (True, False):
            way = Way(whole_heads, first)
            try:
                names = prune(copy.deepcopy(model), inputs, way, lambda _: False)
            except Exception as error:  # a model it cannot trace
                problems["dependency graph"] = f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
                continue
            good, bad = sound(model, inputs, way, list(names))
            problems |= bad
            groups |= set(good)
            for found, chosen in ((total, good), (exact, [group for group in good if not names[group]])):
                for parameter, gone in removed(model, inputs, way, chosen).items():
                    found[parameter] |= gone
    return {
        "model": name,
        "torch_pruning": tp.__version__,
        "parameters": sum(gone.numel() for gone in total.values()),
        "prunable": sum(int(gone.sum()) for gone in total.values()),
        "exact": sum(int(gone.sum()) for gone in exact.values()),
        "groups": sorted(groups),
        "broken": {group: problem for group, problem in problems.items() if group not in groups},
        "untouched": {n: gone.numel() for n, gone in total.items() if not gone.any()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(ZOO))
    print(json.dumps(measure(parser.parse_args().name), indent=1), flush=True)
    os._exit(0)  # torch's threads can hang an orderly exit once the traced graphs are torn down


if __name__ == "__main__":
    main()
