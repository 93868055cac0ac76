"""Credentials in addresses are refused without being shown, and those of the environment are hidden."""

import pytest
from loops import command

from entroloop.data import address
from entroloop.data.errors import UserError

SECRET = "Hush0123456789"


@pytest.mark.parametrize(
    "source",
    [
        f"https://me:{SECRET}@host/set",
        f"https://{SECRET}@host/set",
        f"s3://AKIA:{SECRET}@bucket/set",
        f"s3://AKIA:se/{SECRET}@bucket/set",
        f"gs://me:p@ss/{SECRET}@bucket/set",
        f"https://host/set?sv=2024&sig={SECRET}",
        f"https://host?{SECRET}",
        f"s3://bucket/set?X-Amz-Signature={SECRET}",
        f"pipe:curl -s https://me:{SECRET}@host/{{}}",
        f"pipe:curl -s -u me:{SECRET} https://host/{{}}",
        f"pipe:curl -s --user 'me:{SECRET}' https://host/{{}}",
        f"pipe:curl -H 'Authorization: Bearer {SECRET}' https://host/{{}}",
        f"pipe:curl 'https://host/{{}}?token={SECRET}'",
        f"pipe:AWS_SECRET_ACCESS_KEY={SECRET} aws s3 cp s3://bucket/{{}} -",
        f"pipe:curl -H 'X-Api-Key: {SECRET}' https://host/{{}}",
    ],
)
def test_addresses_with_credentials_are_refused_without_showing_them(source, tmp_path):
    with pytest.raises(UserError) as caught:
        address.check(source)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "digits", "C:x", "/data/set?x=1", "mine:rings", "https://host:8080/a/set", "s3://bucket/a@b/set", "gs://bucket/set",
        "file:///data/set", "pipe:cat /data/{}", "pipe:ssh me@host cat /data/{}", "pipe:curl -s https://host/{}",
        'pipe:curl -H "Authorization: Bearer $TOKEN" https://host/{}', "pipe:curl -u $LOGIN https://host/{}",
        'pipe:curl -u "me:$PASSWORD" https://host/{}', 'pipe:curl "https://host/{}?token=$TOKEN"',
        "pipe:gsutil -u project cat gs://bucket/{}", "pipe:curl https://host/{}?version=12345678",
    ],
)  # fmt: skip
def test_all_other_sources_are_taken(source):
    assert address.check(source) == source


def test_values_of_secret_variables_are_hidden(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}-longer")
    monkeypatch.setenv("SOME_KEY", "abc")
    assert address.hidden(f"a {SECRET}-longer, b {SECRET}, abc") == "a …, b …, abc"


def test_no_command_shows_or_stores_a_credential_of_an_address(tmp_path):
    source = f"https://me:{SECRET}@127.0.0.1:9/set"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "run.yaml").write_text(f"name: run\nfolder: {tmp_path}/runs\ndata: {{source: '{source}'}}\n")
    grid = f"sweep: {{grid: {{data.source: [wine, '{source}']}}}}\n"
    (tmp_path / "own" / "sweep.yaml").write_text(f"name: s\nfolder: {tmp_path}/runs\ndata: {{source: wine}}\n{grid}")
    for arguments in (
        ("import", source, tmp_path / "out"),
        ("run", tmp_path / "own" / "run.yaml"),
        ("run", tmp_path / "own" / "run.yaml", "--dry-run"),
        ("sweep", tmp_path / "own" / "sweep.yaml"),
    ):
        done = command(*arguments)
        assert done.returncode == 2, done.stdout
        assert SECRET not in done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == ["own"]
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
