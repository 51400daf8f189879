"""Copies between Megatron parameters and HF tensors, as laid out by `hf.mapping`.

import:  read_slice(name, dim, start, length) -> tensor  --import_hf--> local parameters
export:  local parameters --export_local--> blocks --assemble_hf--> whole HF tensors, one at a time
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from megatron_prime.hf.mapping import ParameterPieces, Piece

ReadSlice = Callable[[str, int, int, int], torch.Tensor]


class HFBlock(NamedTuple):
    """The slice of an HF tensor that starts at `hf_start` along `dim`; all other dims are whole."""

    hf_name: str
    dim: int
    hf_start: int
    tensor: torch.Tensor


def import_hf(
    named_params: Mapping[str, torch.Tensor], parameters: Sequence[ParameterPieces], read_slice: ReadSlice
) -> None:
    """Fill every local parameter, in place, from HF tensors; values are cast to the parameter's dtype.

    Raises ValueError when the model's parameters are not exactly those of `parameters`, by name or by shape.
    """
    _check_same_parameters(named_params, parameters)
    for parameter in parameters:
        load_parameter(named_params[parameter.megatron_name], parameter.pieces, read_slice)


@torch.no_grad()
def load_parameter(local: torch.Tensor, pieces: Sequence[Piece], read_slice: ReadSlice) -> None:
    """Fill one local parameter in place. Rows that no piece covers, the padding of the vocabulary, become zero."""
    num_covered = 0
    for piece in pieces:
        block = read_slice(piece.hf_name, piece.dim, piece.hf_start, piece.length)
        target = local.narrow(piece.dim, piece.local_start, piece.length)
        if block.shape != target.shape:
            raise ValueError(
                f"{piece.hf_name}: the block read has shape {tuple(block.shape)},"
                f" {tuple(target.shape)} is needed"
            )
        target.copy_(block)
        num_covered += target.numel()
    if num_covered < local.numel():
        # Pieces of a padded parameter start at row 0 and padding is at the end (see the VOCAB layout).
        local[max((piece.local_start + piece.length for piece in pieces), default=0) :].zero_()


def export_local(
    named_params: Mapping[str, torch.Tensor], parameters: Sequence[ParameterPieces]
) -> Iterator[HFBlock]:
    """Yield every local parameter as blocks of HF tensors: detached views, nothing is copied.

    Raises ValueError when the model's parameters are not exactly those of `parameters`, by name or by shape.
    """
    _check_same_parameters(named_params, parameters)
    for parameter in parameters:
        local = named_params[parameter.megatron_name].detach()
        for piece in parameter.pieces:
            block = local.narrow(piece.dim, piece.local_start, piece.length)
            yield HFBlock(piece.hf_name, piece.dim, piece.hf_start, block)


def assemble_hf(
    expected: Mapping[str, tuple[int, ...]], blocks: Iterable[HFBlock]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Assemble blocks and yield each HF tensor, in memory of its own, as soon as it is complete.

    Args:
        expected: Name and shape of every tensor, as `hf_tensors` returns them.
        blocks: All blocks, each once: replicas are left out (`replicated_over_tp` on ranks other than the first,
            `is_tied_copy`). Passing the blocks of all TP ranks parameter by parameter keeps few tensors incomplete,
            which bounds the memory.

    Raises:
        ValueError: If a name is unknown, or tensors are incomplete at the end.
    """
    begun: dict[str, torch.Tensor] = {}
    num_missing = {name: torch.Size(shape).numel() for name, shape in expected.items()}
    for block in blocks:
        name = block.hf_name
        if name not in expected:
            raise ValueError(f"{name} is not a tensor of this model")
        # Completeness is checked by counting elements, so an overlap between blocks must not count twice.
        if num_missing[name] < block.tensor.numel():
            raise ValueError(f"{name} was given more than once")
        if name not in begun:
            # Memory is allocated when the first block arrives, so only incomplete tensors take any.
            begun[name] = torch.empty(expected[name], dtype=block.tensor.dtype, device=block.tensor.device)
        begun[name].narrow(block.dim, block.hf_start, block.tensor.shape[block.dim]).copy_(block.tensor)
        num_missing[name] -= block.tensor.numel()
        if num_missing[name] == 0:
            yield name, begun.pop(name)
    unfinished = [name for name, count in num_missing.items() if count]
    if unfinished:
        raise ValueError(
            f"{len(unfinished)} HF tensors were not exported completely, the first is {unfinished[0]}"
        )


def _check_same_parameters(
    named_params: Mapping[str, torch.Tensor], parameters: Sequence[ParameterPieces]
) -> None:
    shapes = {parameter.megatron_name: parameter.shape for parameter in parameters}
    absent = sorted(shapes.keys() - named_params.keys())
    unknown = sorted(named_params.keys() - shapes.keys())
    if absent or unknown:
        raise ValueError(
            f"the Megatron model and the HF mapping differ: the model lacks {absent[:5]}, the mapping lacks"
            f" {unknown[:5]} ({len(absent)} and {len(unknown)} in all); do norm_style and the biases agree?"
        )
    for name, shape in shapes.items():
        if tuple(named_params[name].shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(named_params[name].shape)}, the HF mapping expects {shape}"
            )
