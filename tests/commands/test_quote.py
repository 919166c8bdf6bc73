from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from airflow.sdk import Context

from airflow_provider_imagen.cli import main
from airflow_provider_imagen.commands.dag_models import load_dags
from airflow_provider_imagen.sandbox import Fault

pytestmark = pytest.mark.slow

HEADER = """
from airflow.sdk import DAG, Param, TaskGroup, XComArg, task, task_group
from airflow_provider_imagen.operators.imagen import ImagenGenerateOperator as Paint
"""
FLUX = 0.0126  # blackforestlabs/flux-2 in the sandbox
PRICE = 0.042  # imagen-3.0-generate-002


def in_dag(text, *, arguments="", dag_id="d"):
    return (
        f'with DAG("{dag_id}", schedule=None{arguments}):\n{textwrap.indent(textwrap.dedent(text).strip(), "    ")}\n'
    )


@pytest.fixture
def write(tmp_path):
    def write(text, **options):
        path = tmp_path / "dag.py"
        path.write_text(HEADER + in_dag(text, **options))
        return path

    return write


@pytest.fixture
def quote(write, capsys):
    def quote(text, conf=None, *, status=0, **options):
        path = write(text, **options)
        done = main(["quote", str(path), "--json", *([] if conf is None else ["--conf", json.dumps(conf)])])
        shown = capsys.readouterr()
        assert done == status, shown
        return json.loads(shown.out)

    return quote


@pytest.fixture
def quote_task(quote):
    def quote_task(text, *args, **options):
        (found,) = [each for each in quote(text, *args, **options)["tasks"] if each["task_id"].endswith("a")]
        return found

    return quote_task


# --- what is known ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize(
    ("text", "images"),
    [
        ('Paint(task_id="a", prompt="x", num_images=3)', 3),
        ('Paint(task_id="a", prompt=["x", {"prompt": "y", "num_images": 2}])', 3),
        ('Paint(task_id="a", prompt=["x", "y", "z"], limit=2)', 2),
        ('Paint(task_id="a", prompt="{{ params.text }}", num_images="{{ params.n }}")', 2),
        ('Paint(task_id="a", prompt="{{ ds }} {{ run_id }} {{ macros.ds_add(ds, 1) }} {{ logical_date.year }}")', 1),
        ('Paint(task_id="a", prompt="x", num_images="{{ dag_run.conf.get(\'n\', 4) }}")', 4),
        ('Paint(task_id="a", prompt="{{ ti.task_id }} {{ ti.map_index }}")', 1),
        ('Paint(task_id="a", prompt="x", num_images="{{ params.empty }}")', 1),
        ('Paint.partial(task_id="a", num_images=2).expand(prompt=["x", "y {{ ds }}"])', 4),
        ('Paint.partial(task_id="a", prompt="x").expand(model=["flux/dev", "flux/schnell"], seed=[1, 2, 3])', 6),
        ('Paint.partial(task_id="a").expand_kwargs([{"prompt": "x"}, {"prompt": ["y", "z"], "num_images": 2}])', 5),
        (
            """
            @task_group
            def g(text, n):
                Paint(task_id="a", prompt=text, num_images=n)
            g.partial(n=2).expand(text=["x", ["y", "z"]])
            """,
            6,
        ),
        (
            """
            Paint(task_id="a", prompt="x")
            Paint(task_id="b", prompt="y", model="bytedance/seedream-4-5", aspect_ratio="16:9")
            """,
            2,
        ),
        ('class Mine(Paint):\n    pass\nMine(task_id="a", prompt=["x", "y"])', 2),
    ],
)
def test_a_quote_is_what_a_run_then_costs(quote, write, run_dag, sandbox, text, images):
    params = ', params={"n": 2, "text": "a raccoon", "empty": Param(None, type=["null", "integer"])}'
    found = quote(text, arguments=params)
    assert sandbox.ledger() == []
    assert {seen.path for seen in sandbox.seen()} == {"/v1/models", "/v1/models/deprecations"}
    assert (found["is_complete"], found["images"], found["usd_source"]) == (True, images, "live")

    (dag,) = load_dags(write(text, arguments=params)).dags.values()
    assert run_dag(dag).state == "success"
    charges = sandbox.ledger()
    assert sum(charge.images for charge in charges) == images
    assert len(charges) == found["requests"]
    assert float(sum(charge.usd for charge in charges)) == pytest.approx(found["usd"])


@pytest.mark.usefixtures("imagen_connection")
def test_conf_overrides_params_as_in_a_run(quote_task):
    text = 'Paint(task_id="a", prompt="{{ params.text }}", num_images="{{ params.n }}", model="{{ params.model }}")'
    params = ', params={"n": Param(1, type="integer"), "text": "x", "model": "flux/schnell"}'
    assert quote_task(text, arguments=params)["images"] == 1
    found = quote_task(text, {"n": 3, "model": "imagen-3.0-generate-002"}, arguments=params)
    assert (found["images"], found["usd"]) == (3, pytest.approx(3 * PRICE))


@pytest.mark.usefixtures("imagen_connection")
def test_template_files_are_read(quote_task, tmp_path):
    (tmp_path / "raccoon.prompt").write_text("A raccoon in {{ params.place }}")
    found = quote_task('Paint(task_id="a", prompt="raccoon.prompt")', arguments=', params={"place": "Rome"}')
    assert (found["images"], found["problems"]) == (1, [])


@pytest.mark.usefixtures("imagen_connection")
def test_stored_input_images_need_not_exist_yet(quote_task):
    text = 'Paint(task_id="a", prompt="x", model="flux/kontext-pro/image-to-image", input_images="/no/such/file.png")'
    found = quote_task(text)
    assert (found["is_counted"], found["images"], found["problems"]) == (True, 1, [])


# --- what only a run knows --------------------------------------------------------------------------------------------


UPSTREAM = """
@task
def rows():
    raise AssertionError("no task runs")
"""


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize(
    ("text", "instances", "known"),
    [
        ('Paint(task_id="a", prompt=rows())', 1, {"prompt": "XCom of 'rows'"}),
        ('Paint(task_id="a", prompt=["x", rows()])', 1, {"prompt": "XCom of 'rows'"}),
        ('Paint(task_id="a", prompt=rows().map(str))', 1, {"prompt": "XCom of 'rows'"}),
        ('Paint(task_id="a", prompt="x", num_images=rows())', 1, {"num_images": "XCom of 'rows'"}),
        (
            'Paint(task_id="a", prompt="x", num_images="{{ ti.xcom_pull(\'rows\') }}")',
            1,
            {"num_images": "{{ ti.xcom_pull('rows') }}"},
        ),
        ('Paint(task_id="a", prompt="x", num_images="{{ var.value.n }}")', 1, {"num_images": "{{ var.value.n }}"}),
        ('Paint(task_id="a", prompt=["x"] * 9, limit="{{ var.value.n }}")', 1, {"limit": "{{ var.value.n }}"}),
        ('Paint.partial(task_id="a").expand(prompt=rows())', None, {"prompt": "XCom of 'rows'"}),
        ('Paint.partial(task_id="a", prompt="x").expand(seed=rows())', None, {"seed": "XCom of 'rows'"}),
        (
            'Paint.partial(task_id="a").expand_kwargs(rows())',
            None,
            {"expand_kwargs": "XCom of 'rows'", "prompt": "XCom of 'rows'"},
        ),
        (
            """
            @task_group
            def g(text):
                Paint(task_id="a", prompt=text)
            g.expand(text=rows())
            """,
            None,
            {"prompt": "XCom of 'rows'"},
        ),
        (
            """
            @task.imagen
            def a():
                raise AssertionError("no task runs")
            a()
            """,
            1,
            {"prompt": "what the function returns"},
        ),
        (
            """
            @task.imagen
            def a(x):
                raise AssertionError("no task runs")
            a.expand(x=["p", "q", "r"])
            """,
            3,
            {"prompt": "what the function returns"},
        ),
        (
            """
            @task.imagen
            def a(x):
                raise AssertionError("no task runs")
            a.expand(x=rows())
            """,
            None,
            {"prompt": "what the function returns"},
        ),
        (
            """
            @task.imagen
            def a(x, y, ti):
                raise AssertionError("no task runs")
            a.partial(y=1).expand_kwargs(rows())
            """,
            None,
            {"prompt": "what the function returns"},
        ),
    ],
)
def test_a_task_whose_size_only_a_run_knows_is_priced_per_item_and_not_counted(quote, text, instances, known):
    found = quote(UPSTREAM + textwrap.dedent(text))
    (task,) = found["tasks"]
    assert (task["instances"], task["only_in_a_run"]) == (instances, known)
    assert (task["usd"], task["problems"]) == (PRICE, [])
    assert (task["is_counted"], found["is_complete"], found["usd"]) == (False, False, 0)


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize(
    ("text", "images", "known"),
    [
        ('Paint(task_id="a", prompt="About {{ ti.xcom_pull(\'rows\') }}")', 1, "text of prompt"),
        ('Paint(task_id="a", prompt=[{"prompt": "{{ var.value.p }}", "num_images": 2}, "y"])', 3, "text of prompt"),
        ('Paint(task_id="a", prompt="x", seed=rows())', 1, "seed"),
        ('Paint(task_id="a", prompt="x", output_path="{{ conn.s3.host }}/pictures")', 1, "output_path"),
        (
            'Paint(task_id="a", prompt="x", model="flux/kontext-pro/image-to-image", input_images=rows())',
            1,
            "input_images",
        ),
    ],
)
def test_what_does_not_change_the_number_of_images_is_named_but_counted(quote_task, text, images, known):
    found = quote_task(UPSTREAM + textwrap.dedent(text))
    assert (found["is_counted"], found["images"], list(found["only_in_a_run"])) == (True, images, [known])
    assert found["usd"] > 0


@pytest.mark.usefixtures("imagen_connection")
def test_without_a_model_there_is_no_price(quote_task):
    found = quote_task('Paint(task_id="a", prompt="x", model="{{ var.value.model }}")')
    assert (found["usd"], found["is_counted"], found["problems"]) == (None, False, [])


@pytest.mark.usefixtures("imagen_connection")
def test_nothing_is_known_of_a_native_template(quote_task):
    text = 'Paint(task_id="a", prompt="{{ ti.xcom_pull(\'rows\') }}")'
    found = quote_task(text, arguments=", render_template_as_native_obj=True")
    assert (found["is_counted"], list(found["only_in_a_run"])) == (False, ["prompt"])


# --- what would fail --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('Paint(task_id="a", prompt="x", num_images=9)', "num_images=9: "),
        ('Paint.partial(task_id="a").expand(prompt=["x"], seed=[1, -1])', "seed=-1: "),
        ('Paint(task_id="a", prompt="{{ parms.x }}")', "the template cannot be rendered: 'parms' is undefined"),
        ('Paint(task_id="a", prompt="x", seed="{{ params.no }}")', "the template cannot be rendered: "),
        ('Paint(task_id="a", prompt="{{ unclosed")', "the template cannot be rendered: "),
        (
            """
            class Mine(Paint):
                def __init__(self, *, text, **kwargs):
                    super().__init__(prompt=text.upper(), **kwargs)
            Mine.partial(task_id="a").expand(text=["x", 7])
            """,
            "the operator cannot be created: 'int' object has no attribute 'upper'",
        ),
        ('Paint(task_id="a", prompt=["x", "y"], max_usd=0.05)', "max_usd=$0.05: the images cost about $0.084"),
    ],
)
def test_a_task_that_would_fail_before_paying_is_reported(quote_task, text, problem):
    found = quote_task(text, status=1)
    assert problem in found["problems"][0]
    assert found["is_counted"] is False


@pytest.mark.parametrize(
    ("argv", "content", "message"),
    [
        (["--conf", "{n: 1}"], in_dag("pass"), "--conf is not JSON"),
        (["--conf", "[1]"], in_dag("pass"), "--conf is not a JSON object"),
        ([], "raise RuntimeError('no\\nluck')", "dag.py: luck"),
        ([], "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ([], "def (:", "SyntaxError: invalid syntax"),
        ([], "# DAG of airflow", "defines no DAG"),
        ([], in_dag("pass", dag_id="x") + in_dag("pass", dag_id="y"), "several DAGs; choose one with --dag-id: x, y"),
        (["--dag-id", "z"], in_dag("pass", dag_id="x"), "does not define the DAG 'z', but x"),
        (
            [],
            in_dag('Paint(task_id="a", prompt="x")', arguments=', params={"n": Param(type="integer")}'),
            "params of the",
        ),
        (
            ["--conf", '{"n": "many"}'],
            in_dag('Paint(task_id="a", prompt="x")', arguments=', params={"n": Param(1, type="integer")}'),
            "Invalid input for param n",
        ),
    ],
)
def test_what_cannot_be_quoted_is_one_line_and_status_2(tmp_path, capsys, argv, content, message):
    (tmp_path / "dag.py").write_text(HEADER + content)
    assert main(["quote", str(tmp_path / "dag.py"), *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    line = shown.err.splitlines()[-1]
    assert line.startswith("Error: ")
    assert message in line


def test_a_missing_file_is_status_2(tmp_path, capsys):
    assert main(["quote", str(tmp_path / "none.py")]) == 2
    assert "none.py is not a file" in capsys.readouterr().err


@pytest.mark.usefixtures("imagen_connection")
def test_one_of_several_dags_can_be_chosen(tmp_path, capsys):
    path = tmp_path / "dag.py"
    path.write_text(HEADER + in_dag("pass", dag_id="x") + in_dag('Paint(task_id="a", prompt="x")', dag_id="y"))
    assert main(["quote", str(path), "--dag-id", "y"]) == 0
    assert "Total of y: $0.042 at current prices.\n" in capsys.readouterr().out
    assert main(["quote", str(path), "--dag-id", "x"]) == 0
    assert "x has no task that is an ImagenGenerateOperator or @task.imagen" in capsys.readouterr().out


# --- prices -----------------------------------------------------------------------------------------------------------


def test_without_a_connection_the_last_known_prices_apply(quote):
    found = quote('Paint(task_id="a", prompt="x", model="flux/schnell")')
    assert (found["usd_source"], found["usd"] > 0) == ("last known", True)
    assert found["notices"][0].startswith("Prices of the connection imagen_default could not be looked up: There is no")


@pytest.mark.usefixtures("imagen_connection")
def test_without_the_api_the_last_known_prices_apply(quote, sandbox):
    sandbox.add_fault(Fault("status", path="/v1/models", times=None))
    found = quote(
        """
        Paint.partial(task_id="a", model="no/such-model-yet").expand(prompt=["x", "y"])
        Paint(task_id="b", prompt="x")
        """
    )
    (notice,) = found["notices"]
    assert notice.startswith("Prices of the connection imagen_default could not be looked up: The API failed (500)")
    assert len(sandbox.seen("/v1/models")) == 1
    assert [task["usd_source"] for task in found["tasks"]] == ["unknown", "last known"]


@pytest.mark.usefixtures("imagen_connection")
def test_the_quote_uses_the_prices_and_the_model_of_each_connection(quote, sandbox, monkeypatch):
    values = {"conn_type": "imagen", "host": sandbox.url, "password": sandbox.api_key}
    other = {**values, "extra": {"model": "blackforestlabs/flux-2", "max_usd_per_day": 0.000001}}
    monkeypatch.setenv("AIRFLOW_CONN_IMAGEN_OTHER", json.dumps(other))
    found = quote('Paint(task_id="a", prompt="x")\nPaint(task_id="b", prompt="x", imagen_conn_id="imagen_other")')
    assert [task["usd"] for task in found["tasks"]] == [PRICE, FLUX]
    assert sandbox.api_key not in json.dumps(found)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("imagen_connection")
def test_the_table_names_what_only_a_run_knows(write, capsys):
    path = write(
        UPSTREAM
        + 'Paint(task_id="a", prompt=rows(), num_images=2)\nPaint(task_id="b", prompt=["x", "y"], num_images=9)'
    )
    assert main(["quote", str(path)]) == 1
    out = capsys.readouterr().out
    assert "$0.084 per prompt" in out
    assert "a: prompt is known only at run time (XCom of 'rows')\n" in out
    assert "FAIL  b: prompt[0].num_images=9: a whole number from 1 to 4 is allowed\n" in out
    assert "Total of d: unknown, not counting a, b.\n" in out


def test_a_quote_needs_no_database(sandbox, tmp_path, write):
    """In its own process, because a test process has a database; and only the quote reaches stdout."""
    path = write('print("printed by the DAG file")\nPaint(task_id="a", prompt="{{ ds }}")')
    connection = json.dumps({"conn_type": "imagen", "host": sandbox.url, "password": sandbox.api_key})
    home = tmp_path / "home"
    done = subprocess.run(
        [sys.executable, "-m", "airflow_provider_imagen.cli", "quote", "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ
        | {
            "AIRFLOW_CONN_IMAGEN_DEFAULT": connection,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        },
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usd"] == PRICE
    assert not (home / "airflow.db").exists()


@pytest.mark.usefixtures("imagen_connection")
def test_every_example_can_be_quoted(capsys):
    for path in sorted((Path(__file__).parents[2] / "example_dags").glob("*.py")):
        dag_ids = list(load_dags(path).dags)
        capsys.readouterr()
        for dag_id in dag_ids:
            assert main(["quote", str(path), "--dag-id", dag_id, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["dag_id"] == dag_id


# --- retired models ---------------------------------------------------------------------------------------------------

RETIRED = "dall-e-2"
ENDED = "imagen-4.0-ultra-generate-preview-06-06"  # by its maker's announcement, which the catalogue has


@pytest.mark.usefixtures("imagen_connection")
def test_a_retired_model_costs_what_its_fallback_costs(quote, write, run_dag, sandbox, capsys):
    text = f'Paint(task_id="a", prompt="x", model="{RETIRED}", fallback_models=["{RETIRED}", "flux/dev", "flux/pro"])'
    found = quote(text)
    assert (found["tasks"][0]["fallbacks"], found["usd_source"]) == ({RETIRED: "flux/dev"}, "live")
    assert main(["quote", str(write(text))]) == 0
    assert f"a: {RETIRED} is retired; the price is that of its fallback flux/dev\n" in capsys.readouterr().out

    (dag,) = load_dags(write(text)).dags.values()
    assert run_dag(dag).state == "success"
    assert float(sum(charge.usd for charge in sandbox.ledger())) == pytest.approx(found["usd"])


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize("more", ["", f', fallback_models=["{RETIRED}"]'])
def test_a_retired_model_without_a_fallback_fails(quote_task, more):
    found = quote_task(f'Paint(task_id="a", prompt="x", model="{RETIRED}"{more})', status=1)
    assert found["problems"][0].startswith(f"model='{RETIRED}': withdrawn")
    assert found["is_counted"] is False


def test_without_the_api_the_catalogue_says_which_models_are_retired(quote_task):
    found = quote_task(f'Paint(task_id="a", prompt="x", model="{ENDED}", fallback_models=["flux/dev"])')
    assert found["fallbacks"] == {ENDED: "flux/dev"}


@pytest.mark.usefixtures("imagen_connection")
def test_without_the_list_of_retired_models_the_catalogue_applies_with_a_notice(quote, sandbox):
    sandbox.add_fault(Fault("status", path="/v1/models/deprecations", times=None))
    found = quote(f'Paint(task_id="a", prompt="x", model="{ENDED}", fallback_models=["flux/dev"])')
    assert found["tasks"][0]["fallbacks"] == {ENDED: "flux/dev"}
    assert found["notices"][0].startswith("Retired models of the connection imagen_default could not be looked up: ")


# --- expressions with values of a run ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize(
    "expression",
    [
        "4 if partition_key == 'eu' else 1",
        "4 if 'eu' != partition_key else 1",
        "4 if partition_key in ['eu', 'us'] else 1",
        "{'eu': 4}[partition_key]",
        "4 if partition_key else 1",
        "4 if not partition_key else 1",
        "4 if prev_start_date_success < logical_date else 1",
        "4 if logical_date >= prev_start_date_success else 1",
        "4 if prev_start_date_success is none else 1",
        "4 if partition_key is string else 1",
        "4 if prev_data_interval_end_success is number else 1",
        "partition_key | int",
        "partition_key | float",
        "partition_key | default(1)",
        "partition_key | length",
        "partition_key | tojson",
        "'%d' | format(partition_key)",
        "task_reschedule_count + 1",
        "2 * task_reschedule_count",
        "-task_reschedule_count",
        "(logical_date - prev_start_date_success).days",
        "macros.ds_add(partition_key, 1)",
        "dag_run.id == 1",
        "ti is mapping",
    ],
)
def test_an_expression_with_a_value_of_a_run_has_no_result(quote_task, expression):
    found = quote_task(f'Paint(task_id="a", prompt="x", num_images="{{{{ {expression} }}}}")')
    assert (list(found["only_in_a_run"]), found["problems"]) == (["num_images"], [])


@pytest.mark.usefixtures("imagen_connection")
@pytest.mark.parametrize("name", sorted(Context.__annotations__))
def test_every_name_that_airflow_documents_can_be_used(quote_task, name):
    found = quote_task(f'Paint(task_id="a", prompt="{{{{ {name} }}}} text")')
    assert (found["is_counted"], found["problems"]) == (True, [])


@pytest.mark.usefixtures("imagen_connection")
def test_parameters_of_a_run_leave_a_price_at_their_defaults(quote, write, capsys):
    text = UPSTREAM + 'Paint(task_id="a", prompt="x", parameters=rows())'
    found = quote(text)
    assert (found["tasks"][0]["is_counted"], found["is_complete"], found["usd"]) == (True, False, PRICE)
    assert main(["quote", str(write(text))]) == 0
    out = capsys.readouterr().out
    assert "$0.042 at default parameters" in out
    assert "Total of d: $0.042 at current prices, with default parameters for a.\n" in out


@pytest.mark.usefixtures("imagen_connection")
def test_without_the_number_of_images_the_price_of_one_is_shown(write, capsys):
    path = write(UPSTREAM + 'Paint(task_id="a", prompt=["x", "y", "z"], num_images=rows())')
    assert main(["quote", str(path)]) == 0
    assert "$0.042 per image" in capsys.readouterr().out
