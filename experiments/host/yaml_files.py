"""Reading YAML."""

from pathlib import Path
from typing import Any

import yaml

from experiments.host.nesting import check_nesting


class _Loader(yaml.SafeLoader):
    """Refuses keys that are given twice, of which YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, name in enumerate(names):
            if name in names[:number]:
                line = node.value[number][0].start_mark.line + 1
                raise yaml.YAMLError(f"line {line} gives '{name}' a second time")
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Any:
    """The contents of a YAML file.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: see `parse_yaml`.
    """
    return parse_yaml(file.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """The contents of a text in YAML.

    Raises:
        ValueError: it is not YAML, gives a key twice, is nested too deeply or contains itself; the message is one line.
    """
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError:
        raise ValueError("it is nested too deeply, or contains itself") from None
    except (LookupError, AttributeError, TypeError) as error:  # PyYAML's, such as for `!!int ""` and `!!timestamp x`
        raise ValueError("a value does not fit its tag") from error
    check_nesting(content)
    return content
