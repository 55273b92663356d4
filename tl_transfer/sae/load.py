"""load_sae: an SAE from a folder, from the registry of sae-lens, or from an object in memory."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_transfer.data.cache import require_online
from tl_transfer.errors import ArtefactError, FetchError, InputError
from tl_transfer.models.surface import Site
from tl_transfer.sae.convert import ARCHITECTURES, describe
from tl_transfer.sae.dictionary import Dictionary
from tl_transfer.sae.folder import SPACE, read_folder
from tl_transfer.space import ActivationSpace


def load_sae(
    source: Any, *, site: Site | None = None, input_scale: float | None = None
) -> Dictionary:
    """An SAE as a `Dictionary`.

    Args:
        source: A folder in the form of sae-lens; ``(release, id)`` of its registry, fetched from
            the hub; or an object: an SAE of sae-lens, or anything with encode, decode and W_dec.
        site: Model and hook point it is for: another width or hook point is refused. Whether it
            belongs to the activations there is measured by `tl_transfer.check_sae`.
        input_scale: See `tl_transfer.sae.convert.coder_of`; only for an SAE that asks for it.

    Returns:
        The SAE. Its space is known when it was trained or folded here, otherwise after a check.

    Raises:
        ArtefactError: no SAE in the folder, or a damaged one.
        FetchError: the hub cannot be reached, or downloads are forbidden.
        InputError: no SAE, one without a plain decoder, or not for this site.
        SpaceError: it was trained here, on other activations than those of the site.
    """
    if isinstance(source, str | Path):
        found = _from_folder(Path(source).expanduser(), input_scale)
    elif isinstance(source, tuple) and len(source) == 2 and all(isinstance(s, str) for s in source):
        found = _from_registry(*source, input_scale)
    else:
        found = Dictionary.of(source, input_scale=input_scale)
    if site is not None:
        require_site(found, site)
    return found


def require_site(dictionary: Dictionary, site: Site) -> None:
    """Refuse an SAE that says itself that it is of another place.

    Raises:
        InputError: another width or hook point.
        SpaceError: a known space that is not the site's.
    """
    if dictionary.d_model != site.model.d_model:
        raise InputError(
            "sae: wrong width for this model",
            got=f"{dictionary.d_model} in {dictionary!r}",
            valid=f"{site.model.d_model}, the width of {site!r}",
            hint="load the SAE that was trained on this model",
        )
    said = dictionary.hook_point
    if said is not None and _canonical(said, site) != site.point.name:
        raise InputError(
            "sae: was trained on another hook point",
            got=said,
            valid=site.point.name,
            hint=f"use model.at({said!r}), or the SAE of this hook point",
        )
    if dictionary.space is not None:
        dictionary.space.require(site.space, "SAE and site")


def _canonical(name: str, site: Site) -> str:
    try:
        return site.model.hook_point(name).name
    except InputError:
        return name  # hook_z, mlp.hook_post, ...: no site of ours, hence not this one


def _from_folder(folder: Path, input_scale: float | None) -> Dictionary:
    cfg, tensors = read_folder(folder)
    origin = {"folder": str(folder)}
    if describe(cfg).architecture in ARCHITECTURES:
        found = Dictionary.from_config(cfg, tensors, input_scale=input_scale, origin=origin)
    else:
        sae = _sae_lens(f"{folder} ({cfg.get('architecture')})").SAE.load_from_disk(str(folder))
        found = Dictionary.of(sae, input_scale=input_scale, origin=origin)
    said = (cfg.get("metadata") or {}).get(SPACE)
    if said is None:
        return found
    try:
        return replace(found, space=ActivationSpace.from_json(said))
    except TypeError as error:
        raise ArtefactError(
            f"{folder}: the activation space in its metadata cannot be read",
            got=str(error),
            valid="the fields of ActivationSpace",
            hint="remove metadata.activation_space from cfg.json and check the SAE anew",
        ) from error


def _from_registry(release: str, sae_id: str, input_scale: float | None) -> Dictionary:
    sae_lens = _sae_lens(f"({release!r}, {sae_id!r})")
    known = sae_lens.loading.pretrained_saes_directory.get_pretrained_saes_directory()
    if release in known:
        _require_known("id", sae_id, list(known[release].saes_map))
    elif "/" not in release:
        _require_known("release", release, list(known))
    require_online(f"SAE {release}/{sae_id}")
    try:
        sae = sae_lens.SAE.from_pretrained(release, sae_id, device="cpu")
    except (OSError, ConnectionError) as error:
        raise FetchError(
            f"SAE {release}/{sae_id}: cannot be fetched from the hub",
            got=f"{type(error).__name__}: {error}"[:300],
            valid="a reachable hub, or an SAE in its local cache",
            hint="fetch it where there is a network (sae.save_model(folder)) and load the folder",
        ) from error
    origin = {"release": release, "id": sae_id}
    return Dictionary.of(sae, input_scale=input_scale, origin=origin)


def _require_known(what: str, name: str, names: list[str]) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=4, cutoff=0.4) or names[:4]
        raise InputError(
            f"{what}: not in the registry of sae-lens",
            got=repr(name),
            valid=f"{', '.join(near)} (of {len(names)})",
            hint="sae_lens.loading.pretrained_saes_directory lists them; a repository of the hub "
            "is named owner/name",
        )


def _sae_lens(what: str) -> Any:
    try:
        import sae_lens
        import sae_lens.loading.pretrained_saes_directory
    except ImportError as error:
        raise InputError(
            f"{what}: needs sae-lens, which cannot be imported",
            got=f"{type(error).__name__}: {error}",
            valid="tl_transfer[sae] with TransformerLens 3.x; folders of standard, topk, jumprelu "
            "and gated SAEs are read without it",
            hint="pip install 'transformer-lens<4' 'sae-lens>=6.54'",
        ) from error
    return sae_lens
