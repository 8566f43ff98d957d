"""One model over several processes: each holds some rows of every parameter, of its gradient, and of what the optimizer
remembers of it.

PyTorch's FSDP2 (`fully_shard`) does it. A block's parameters are gathered whole when it has its turn, forward and
backward, and the rows of its gradient are summed over the processes where they are held; no network and no objective
knows. What is held by rows is a DTensor: of n rows each of N processes has ⌈n / N⌉, the last ones fewer or none. What
every process holds whole (a number without dimensions, a buffer) is a plain tensor, as in one process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfsup.distributed import is_sharded, together
from selfsup.errors import UserError


def shard(objective: nn.Module, device: torch.device, narrow: Callable[[nn.Module], torch.dtype | None]) -> None:
    """Leave of an objective's parameters the rows of this process; a gradient is the sum over all of them.

    `predict` is its forward pass. What lies outside of blocks (embeddings, heads) stays whole from there to the end of
    the backward pass, since the score may use it. Raises a UserError where this PyTorch cannot.

    Args:
        narrow: the type in which a block's parameters are gathered, and its gradients come; None for their own. These
            are summed in fp32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise UserError(f"train.shard needs PyTorch 2.13 or newer, and this is {torch.__version__}; update it.")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    held_whole = {parameter for parameter in objective.parameters() if parameter.ndim == 0}
    for part in dict.fromkeys((*_blocks(objective), objective)):  # a network may serve two parts of an objective
        dtype = None if part is objective else narrow(part)
        policy = MixedPrecisionPolicy(dtype, dtype and torch.float32, cast_forward_inputs=False)
        sharded = fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=held_whole)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # of gloo, which knows no other
        # A process whose records do not touch a parameter takes part all the same.
        sharded.set_reduce_scatter_unused_params(True)
    register_fsdp_forward_method(objective, "predict")
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which no score writes to


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts that networks repeat: what stands in a list of modules."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child
        else:
            yield from _blocks(child)


@torch.no_grad()
def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory: its rows of a sharded one, all of another."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def rows_of(count: int, rank: int, size: int) -> slice:
    """Which of so many rows one of `size` processes holds."""
    each = -(-count // size)
    return slice(min(count, rank * each), min(count, (rank + 1) * each))


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor, on every process; a plain one as it is."""
    if not is_sharded(tensor):
        return tensor
    with together():
        return tensor.full_tensor()


@torch.no_grad()
def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor as another one is held: sharded where that is, and on its device."""
    if not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor

    mesh = like.device_mesh
    mine = tensor[rows_of(len(tensor), mesh.get_local_rank(), mesh.size())].to(like.device, copy=True)
    return DTensor.from_local(mine, mesh, like.placements, shape=like.shape, stride=like.stride())


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give a module, sharded or not, the whole tensors of a state."""
    module.load_state_dict({name: placed(tensors[name], like) for name, like in module.state_dict().items()})


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module, sharded or not, in whole tensors, on every process."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


@torch.no_grad()
def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The joint 2-norm of tensors, some of which may be held by rows."""
    given = list(tensors)
    sharded = [tensor for tensor in given if is_sharded(tensor)]
    if not sharded:
        return nn.utils.get_total_norm(given)
    square = nn.utils.get_total_norm([own(tensor) for tensor in sharded]).square()
    with together():
        dist.all_reduce(square, group=sharded[0].device_mesh.get_group())
    rest = [tensor for tensor in given if not is_sharded(tensor)]
    return (square + nn.utils.get_total_norm(rest).square()).sqrt() if rest else square.sqrt()


Work = Callable[[list[nn.Parameter], list[Tensor]], list[Tensor]]


def spread(parameters: list[nn.Parameter], held: list[Tensor], work: Work, costs: Sequence[int]) -> list[Tensor]:
    """What `work` makes of whole tensors, one for each parameter and of its shape, in the rows that this process holds.

    Where the parameters are sharded, each tensor goes to one process, which does all of the work on it, and comes back
    by rows: two exchanges, and every process has about as much to do.

    Args:
        held: the rows of this process; where nothing is sharded, all of them.
        costs: of the work on each.
    """
    if not is_sharded(parameters[0]):
        return work(parameters, held)
    mesh = parameters[0].device_mesh
    group, rank, size = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    dealt = deal(costs, size)
    mine = [parameters[number] for number in dealt[rank]]

    def rows(parameter: nn.Parameter, of: int) -> torch.Size:
        part = rows_of(len(parameter), of, size)
        return torch.Size((part.stop - part.start, *parameter.shape[1:]))

    received = _exchange(
        [[held[number] for number in numbers] for numbers in dealt],
        [[rows(parameter, of) for parameter in mine] for of in range(size)],
        held[0],
        group,
    )
    made = work(mine, [torch.cat(parts) for parts in zip(*received, strict=True)]) if mine else []
    returned = _exchange(
        [[tensor[rows_of(len(tensor), of, size)] for tensor in made] for of in range(size)],
        [[rows(parameters[number], rank) for number in numbers] for numbers in dealt],
        held[0],
        group,
    )
    found: dict[int, Tensor] = {}
    for numbers, tensors in zip(dealt, returned, strict=True):
        found |= zip(numbers, tensors, strict=True)
    return [found[number] for number in range(len(parameters))]


def deal(costs: Sequence[int], size: int) -> list[list[int]]:
    """The numbers of tasks for each of `size` processes: the dearest one first, to whoever has the least to do."""
    dealt: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        to = loads.index(min(loads))
        dealt[to].append(number)
        loads[to] += costs[number]
    return dealt


def _exchange(
    sent: list[list[Tensor]], shapes: list[list[torch.Size]], like: Tensor, group: dist.ProcessGroup
) -> list[list[Tensor]]:
    """Tensors for each process of a group, for those that each of them sends here, which have these shapes. All are of
    the type and on the device of `like`."""
    parcels = [torch.cat([like.new_empty(0), *(tensor.reshape(-1) for tensor in tensors)]) for tensors in sent]
    lengths = [[shape.numel() for shape in those] for those in shapes]
    sizes = [sum(those) for those in lengths]
    inbox, outbox, width = like.new_empty(sum(sizes)), torch.cat(parcels), like.element_size()
    with together():  # as bytes, which every backend exchanges
        dist.all_to_all_single(
            inbox.view(torch.uint8),
            outbox.view(torch.uint8),
            [width * length for length in sizes],
            [width * len(parcel) for parcel in parcels],
            group,
        )
    return [
        [flat.view(shape) for flat, shape in zip(torch.split(parcel, those), wanted, strict=True)]
        for parcel, those, wanted in zip(torch.split(inbox, sizes), lengths, shapes, strict=True)
    ]
