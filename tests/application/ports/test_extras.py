"""What is said where a part is not installed."""

from eyewall.application.ports.extras import needs


def test_the_commands_work_from_an_index_and_in_a_clone():
    assert needs("metrics", "prometheus") == (
        "metrics needs the extra eyewall[prometheus]: pip install 'eyewall[prometheus]', "
        "in a clone of the repository pip install '.[prometheus]'"
    )
    assert "needs the extras eyewall[jwt,yaml]: " in needs("this", "jwt", "yaml")
