import json

import pytest

from entroloop.data.errors import UserError
from entroloop.data.runfolder import Layout, read_config

FORK = {"run": "runs/other", "generation": 1, "digest": "ab", "config": {}}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("runs/other", r"forked_from: must hold keys and values, is 'runs/other'"),
        ({**FORK, "generation": "1"}, r"forked_from\.generation: must be a number from 0 on, is '1'"),
        ({**FORK, "generation": -1}, r"forked_from\.generation: must be a number from 0 on, is -1"),
        ({**FORK, "generation": True}, r"forked_from\.generation: must be a number from 0 on, is True"),
        ({**FORK, "run": None}, r"forked_from\.run: must be a folder, is None"),
        ({**FORK, "digest": 3}, r"forked_from\.digest: must be a digest, is 3"),
        ({**FORK, "config": []}, r"forked_from\.config: must be keys and values, is \[\]"),
        (
            {**FORK, "config": {"forked_from": {"generation": 0}}},
            r"forked_from\.config\.forked_from\.run: must be a folder, is None",
        ),
    ],
)
def test_a_fork_that_cannot_be_followed_is_one_line(tmp_path, section, said):
    layout = Layout(tmp_path)
    layout.config.write_text(json.dumps({"format": 1, "generations": 2, "forked_from": section}))
    with pytest.raises(UserError, match=rf"config\.yaml: {said}$"):
        read_config(layout)


@pytest.mark.parametrize("section", [{}, None, {**FORK, "generation": None}, FORK])
def test_a_fork_and_a_run_that_is_none_are_read(tmp_path, section):
    layout = Layout(tmp_path)
    layout.config.write_text(json.dumps({"format": 1, "generations": 2, "forked_from": section}))
    assert read_config(layout)["forked_from"] == section
