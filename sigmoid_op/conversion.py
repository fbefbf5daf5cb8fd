"""``convert(model)``: a model's ``nn.Sigmoid``, ``nn.SiLU`` and the like become ours; ``revert(model)`` undoes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from sigmoid_op.ops.bce import BCEWithLogitsLoss
from sigmoid_op.ops.glu import GLU
from sigmoid_op.ops.logsigmoid import LogSigmoid
from sigmoid_op.ops.sigmoid import Sigmoid
from sigmoid_op.ops.silu import SiLU

# PyTorch's modules and ours. Each of ours is a subclass that finds all it needs in an instance of PyTorch's.
MODULES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sigmoid: Sigmoid,
    nn.SiLU: SiLU,
    nn.GLU: GLU,
    nn.LogSigmoid: LogSigmoid,
    nn.BCEWithLogitsLoss: BCEWithLogitsLoss,
}


@dataclass(frozen=True)
class Report:
    """What :func:`convert` or :func:`revert` replaced: ``replaced[name]`` is the class that the module now has.

    Names are those of ``model.named_modules()``: "" is the model itself. A shared module has one for each module that
    holds it and each name it has there.
    """

    replaced: Mapping[str, type[nn.Module]]

    def __str__(self) -> str:
        lines = [
            f"  {name or '(the model itself)'}: {kind.__module__}.{kind.__qualname__}"
            for name, kind in self.replaced.items()
        ]
        return "\n".join([f"{len(lines)} replaced{':' if lines else ''}", *lines])


def convert(model: nn.Module) -> Report:
    """Make every ``nn.Sigmoid`` in ``model``, itself included, a :class:`sigmoid_op.Sigmoid`, in place.

    The same with ``nn.SiLU``, ``nn.GLU``, ``nn.LogSigmoid`` and ``nn.BCEWithLogitsLoss``.

    Only the exact type counts: a subclass, a scripted or a parametrized module and one given to ``fully_shard`` (which
    changes its class) stay as they are, so convert first and wrap afterwards. So does a module with a ``forward`` of
    its own, as some hooks set it, which would hide that of the class.

    Replaced is the module's class, as ``torch.nn.utils.parametrize`` and ``fully_shard`` do it, and not the module: it
    remains the same object wherever it is shared or referred to, with its hooks, flags, name and every other attribute.
    A compiled model has PyTorch's operators before and after. Whole modules pickled afterwards need this package to
    load; state dicts do not. ``torch.fx`` keeps PyTorch's modules whole but traces through ours, to ``torch.sigmoid``:
    for kernels in its graph, trace first and convert the GraphModule. For gradients that survive saturation, set
    ``exact_grad = True`` on a converted module.

    Args:
        model: any module; what it holds outside of registered submodules, as in plain lists, is not found.

    Returns:
        a :class:`Report` of what was replaced, by name; print it.
    """
    return _replace(model, MODULES)


def revert(model: nn.Module) -> Report:
    """Undo :func:`convert`: make every ``Sigmoid`` that it could have made an ``nn.Sigmoid`` again, and so on.

    Those that were ours from the start are not told apart from converted ones; nn.Sigmoid heeds no ``exact_grad``.

    Returns:
        a :class:`Report` of what was replaced, by name; print it.
    """
    return _replace(model, {ours: theirs for theirs, ours in MODULES.items()})


def _replace(model: nn.Module, table: Mapping[type[nn.Module], type[nn.Module]]) -> Report:
    # All are found before any is changed: a shared module is met once in each of its places.
    found = [
        (name, module) for name, module in _places(model) if type(module) in table and "forward" not in vars(module)
    ]
    replaced = {name: table[type(module)] for name, module in found}
    for name, module in found:
        module.__class__ = replaced[name]
    return Report(replaced)


def _places(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model, and all below it in each place that holds one.

    Each is looked into once: where modules are shared at every level, the paths to them double with each.
    """
    yield "", model
    for prefix, module in model.named_modules():
        for name, child in module._modules.items():
            if child is not None:
                yield f"{prefix}.{name}" if prefix else name, child
