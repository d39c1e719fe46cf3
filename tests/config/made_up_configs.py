"""Config files that tests make."""

import yaml


def write(folder, **files):
    """Write files of a text or of values, by their names; return the path of ``a``."""
    for name, content in files.items():
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        (folder / f"{name}.yaml").write_text(text)
    return str(folder / "a.yaml")
