"""Inputs at random: images of any size, layout and values, and things that are none."""

import numpy as np
import torch

from mmsgformer import SGFormer

TINY = dict(embed_dims=(32, 64, 128, 256), depths=(2, 2, 4, 1), num_heads=(2, 4, 8, 16))


def fuzz(inputs: int, seed: int) -> None:
    """Random inputs of the backbone: right outputs, or a TypeError or ValueError that says what is wrong.

    Raises:
        SystemExit: An input gave something else.
    """
    torch.manual_seed(0)
    models = [SGFormer(arch=TINY).eval(), SGFormer(arch=TINY, with_cp=True, drop_path_rate=0.5).train()]
    outcomes: dict[str, int] = {}
    for number in range(inputs):
        x, model = random_input(np.random.default_rng([seed, number])), models[number % 2]
        try:
            with torch.set_grad_enabled(model.training):
                outs = model(x)
            expected = [
                (len(x), channels, -(-x.shape[2] // stride), -(-x.shape[3] // stride))
                for channels, stride in zip(TINY['embed_dims'], (4, 8, 16, 32), strict=True)
            ]
            if [tuple(out.shape) for out in outs] != expected:
                raise SystemExit(f'input {number}, {tuple(x.shape)}: maps {[tuple(o.shape) for o in outs]}')
            outcome = 'maps'
            if model.training and len(x):
                sum(out.float().sum() for out in outs).backward()
        except (TypeError, ValueError) as error:
            if 'SGFormer' not in str(error):
                raise SystemExit(f'input {number}: unclear error {error!r}') from error
            outcome = type(error).__name__
        except Exception as error:
            raise SystemExit(f'input {number}, {describe(x)}: {error!r}') from error
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print(f'{inputs} inputs: {", ".join(f"{count} {name}" for name, count in sorted(outcomes.items()))}')


def describe(x: object) -> str:
    """What an input is."""
    return f'{x.dtype} {tuple(x.shape)} strides {x.stride()}' if torch.is_tensor(x) else repr(x)[:80]


def random_input(rng: np.random.Generator) -> object:
    """Mostly images of any size, layout and values; some that are none."""
    kind = rng.choice(['image', 'image', 'image', 'image', 'dtype', 'rank', 'channels', 'small', 'no tensor'])
    side = lambda low: int(rng.choice([rng.integers(low, 150), rng.integers(low, 60), low, 32, 33]))  # noqa: E731
    shape = [int(rng.integers(0, 3)), 3, side(32), side(32)]
    dtype = torch.float32
    if kind == 'dtype':
        names = ('float64', 'float16', 'bfloat16', 'uint8', 'int64', 'bool', 'complex64', 'float8_e4m3fn')
        dtype = getattr(torch, str(rng.choice(names)))
    elif kind == 'rank':
        shape = [int(rng.choice([0, 1, 3, 40])) for _ in range(rng.choice([0, 1, 2, 3, 5, 6]))]
    elif kind == 'channels':
        shape[1] = int(rng.choice([0, 1, 2, 4, 32]))
    elif kind == 'small':
        shape[int(rng.integers(2, 4))] = int(rng.integers(0, 32))
    elif kind == 'no tensor':
        return [None, 'image.jpg', 3, [torch.ones(1, 3, 32, 32)], np.ones((1, 3, 32, 32), np.float32)][
            rng.integers(5)
        ]
    x = torch.from_numpy(rng.standard_normal(shape)) * float(rng.choice([1, 1, 0, 1e-30, 1e4, 1e30]))
    if len(shape) == 4 and x.numel():
        value = rng.choice([0.0, 0.0, float('nan'), float('inf'), -1e38])
        if value:
            x[0, 0, 0, 0] = value
        layout = rng.choice(['plain', 'channels last', 'turned', 'strided', 'expanded', 'flipped'])
        if layout == 'channels last':
            x = x.to(memory_format=torch.channels_last)
        elif layout == 'turned':
            x = x.transpose(2, 3)
        elif layout == 'strided' and min(shape[2:]) >= 64:
            x = x[..., ::2, ::2]
        elif layout == 'expanded':
            x = x[:1, :1, :1].expand(x.shape)
        elif layout == 'flipped':
            x = x.flip(3)
    return x.to(dtype)
