"""The architectures by name, and the check of any other (docs/method.md, "The network")."""

NUM_STAGES = 4
ARCH_KEYS = ('embed_dims', 'depths', 'num_heads')
ARCHS = {
    # Ours, not the paper's: what a CPU or a small GPU trains (docs/study.md). The others are published.
    't': {'embed_dims': (32, 64, 128, 256), 'depths': (2, 2, 4, 1), 'num_heads': (2, 4, 8, 16)},
    's': {'embed_dims': (64, 128, 256, 512), 'depths': (2, 4, 16, 1), 'num_heads': (2, 4, 8, 16)},
    'm': {'embed_dims': (64, 128, 256, 512), 'depths': (2, 6, 28, 2), 'num_heads': (2, 4, 8, 16)},
    'b': {'embed_dims': (96, 192, 384, 768), 'depths': (4, 6, 24, 2), 'num_heads': (4, 6, 12, 24)},
}
ARCH_ALIASES = {'tiny': 't', 'small': 's', 'medium': 'm', 'base': 'b'}


def resolve_arch(arch: str | dict) -> tuple[tuple[int, ...], ...]:
    """A name or a dict -> checked (embed_dims, depths, num_heads), four integers each.

    Raises:
        ValueError, TypeError: The name is unknown, or the dict has missing, unknown or wrong entries.
    """
    if isinstance(arch, str):
        name = ARCH_ALIASES.get(arch.lower(), arch.lower())
        if name not in ARCHS:
            names = [*ARCHS, *ARCH_ALIASES]
            raise ValueError(f'unknown arch {arch!r}; choose from {names} or give a dict of {ARCH_KEYS}')
        arch = ARCHS[name]
    if not isinstance(arch, dict):
        raise TypeError(f'arch must be a name or a dict of {ARCH_KEYS}, got {type(arch).__name__}')
    if set(arch) != set(ARCH_KEYS):
        missing, unknown = set(ARCH_KEYS) - set(arch), set(arch) - set(ARCH_KEYS)
        raise ValueError(
            f'an arch dict has exactly the keys {ARCH_KEYS}; '
            f'missing: {sorted(missing)}, unknown: {sorted(unknown)}'
        )
    for key, values in arch.items():
        if (
            not isinstance(values, (list, tuple))
            or len(values) != NUM_STAGES
            or not all(isinstance(v, int) and v > 0 for v in values)
        ):
            raise ValueError(f'arch[{key!r}] must be {NUM_STAGES} positive integers, got {values!r}')
    dims, depths, heads = (tuple(arch[key]) for key in ARCH_KEYS)
    if dims[0] % 4:
        raise ValueError(f'embed_dims[0] must be a multiple of 4 for the sin-cos embedding, got {dims[0]}')
    for i, (dim, head) in enumerate(zip(dims, heads, strict=True)):
        if dim % head:
            raise ValueError(f'stage {i}: embed_dims {dim} must be a multiple of num_heads {head}')
    return dims, depths, heads
