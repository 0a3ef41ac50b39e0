"""`docs/cli.md` is what the command says of itself."""

from ops.cli_reference import PAGE, reference

from perdure.cli.main import app


def test_reference_is_what_help_prints():
    """The page is as `make docs` writes it: no option is undocumented, none is invented."""
    assert reference() == PAGE.read_text(encoding="utf-8")


def test_every_command_has_examples():
    """The help of each command ends with examples that can be typed."""
    own = [command for command in app.registered_commands if not command.context_settings]
    assert len(own) == 11
    for command in own:
        assert "Examples:\n  perdure " in command.epilog
