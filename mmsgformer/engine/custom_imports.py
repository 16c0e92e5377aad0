"""The imports that a config needs, so that whoever loads it finds what is registered here."""

from mmengine.config import Config, ConfigDict


def import_mmsgformer(cfg: Config | ConfigDict) -> None:
    """Add this package to a config's `custom_imports`, in place; what the config imports already stays.

    Whoever puts a name of this package into a user's config calls this: the config is dumped into the work
    dir, and MMEngine's own tools load it from there.
    """
    own = dict(cfg.get('custom_imports') or {})
    imports = own.get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    if 'mmsgformer' not in imports:
        cfg.custom_imports = {'allow_failed_imports': False, **own, 'imports': [*imports, 'mmsgformer']}
