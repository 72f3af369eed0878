"""What an export takes, where it is made, and what a training that is to be exported takes more."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import calibrate
import pytest

from launcher import catalog, spec
from launcher.catalog import Flavor
from launcher.errors import RefusedError, RequestError
from launcher.estimate import copies
from launcher.estimate.copies import Copies
from launcher.jobs import folder as runs
from launcher.jobs import request
from launcher.plan import adapter, choices, command, export
from launcher.plan import make as planner
from launcher.plan.adapter import Adapter
from launcher.plan.record import AnyPlan, ExportPlan, Plan
from launcher.runs import again as reruns
from launcher.spec import build_export
from tests.unit import sample

TABLES = catalog.shipped()
TODAY = date(2026, 11, 24)
LAPTOP = Flavor(name="local", vcpu=8, ram_gb=64, disk_gb=500, usd_per_hour=0)
COMMIT = "a" * 40


def trained(model: str = "qwen3-8b", **options: Any) -> Plan:
    return planner.make_plan(spec.build({"model": model, **options}), TABLES, today=TODAY, user="me")


def exported(
    base: str = "unsloth/Qwen3-8B", *, user: str | None = "me", of: Plan | None = None, place: str = "me/houses",
    private: bool = False, image: str | None = None, **options: Any,
) -> ExportPlan:  # fmt: skip
    found = Adapter(place, COMMIT, base, None, 16, 32, private=private)
    asked = build_export(source="me/houses", **options)
    here = LAPTOP if options.get("local") else None
    return export.make_plan(asked, found, TABLES, today=TODAY, user=user, here=here, of=of, image=image)


# ---- A training with exports -----------------------------------------------------------------------------------------


def test_the_parts_of_a_run_with_copies_sum_to_its_time_and_its_price() -> None:
    plain, made = trained(), trained(merge="16bit", gguf=["q4_k_m", "f16"])
    for plan in (plain, made):
        assert plan.duration.total_s == plan.duration.train_s + sum(plan.duration.parts.values())
        assert plan.cost.expected_usd == pytest.approx(plan.cost.usd_per_hour * plan.duration.total_s / 3600, abs=0.006)
    added = set(made.duration.parts) - set(plain.duration.parts)
    assert added == {"merge", "llama.cpp", "convert", "quantise", "check copies", "upload copies"}
    assert made.decisions.timeout_s.value >= 1.5 * made.duration.total_s
    assert made.reasons["merge"].startswith("asked for: a copy of about 16.4 GB")
    assert "q4_k_m 5.2 GB, f16 16.4 GB" in made.reasons["gguf"]
    assert not {"merge", "gguf"} & set(plain.reasons)


def test_a_4bit_upload_is_followed_by_the_16bit_weights() -> None:
    made = trained("qwen3-32b", load_in="4bit", merge="16bit")
    whole = 2 * TABLES.models["qwen3-32b"].params
    assert made.duration.parts["16-bit weights"] == pytest.approx(whole / 200e6, abs=1)
    assert made.duration.parts["upload copies"] == pytest.approx(whole / 50e6, abs=1)
    assert "downloaded for it, 65.5 GB" in made.reasons["merge"]
    assert "16-bit weights" not in trained("qwen3-32b", load_in="4bit", merge="4bit").duration.parts
    assert "16-bit weights" not in trained("qwen3-8b", load_in="4bit", merge="16bit").duration.parts


def test_an_8b_model_does_not_leave_room_for_its_copies_on_a_small_disk() -> None:
    assert trained("llama-3.1-8b", flavor="t4-small").vram.fits
    asked: dict[str, Any] = {"flavor": "t4-small", "merge": "16bit", "gguf": ["q4_k_m"]}
    with pytest.raises(RefusedError, match=r"disk: needs \d+ GB, has 50 GB") as caught:
        trained("llama-3.1-8b", **asked)
    first = caught.value.hint.splitlines()[1].strip()
    assert first.startswith("without --gguf (`launch export` makes it later")
    without = trained("llama-3.1-8b", flavor="t4-small", merge="16bit")
    assert without.host.disk_gb <= 50
    assert f"about ${without.cost.expected_usd:.2f}" in first
    [named] = re.findall(r"--flavor (\S+): .*about \$([0-9.]+)", caught.value.hint.splitlines()[2])
    elsewhere = trained("llama-3.1-8b", **asked | {"flavor": named[0]})
    assert elsewhere.cost.expected_usd == float(named[1])


def test_where_neither_copy_fits_both_are_left_out() -> None:
    with pytest.raises(RefusedError) as caught:
        trained("qwen3-14b", flavor="t4-small", merge="16bit", gguf=["f16"])
    assert "without --merge and --gguf (`launch export`" in caught.value.hint
    assert trained("qwen3-14b", flavor="t4-small").host.disk_gb <= 50


@pytest.mark.parametrize("option", [{"merge": "16bit"}, {"gguf": ["q4_k_m"]}])
def test_the_flavor_is_one_that_holds_the_copies(option: dict[str, Any]) -> None:
    made = trained("llama-3.1-70b", **option)
    flavor = TABLES.flavors[made.decisions.flavor.value]
    assert made.host.disk_gb <= flavor.disk_gb
    assert made.host.ram_gb <= flavor.ram_gb
    assert made.host.disk_gb > trained("llama-3.1-70b").host.disk_gb + 140


def test_what_can_not_be_merged_in_4_bits_is_refused() -> None:
    with pytest.raises(RefusedError, match="--merge 4bit: cpu-upgrade has no GPU"):
        trained("qwen3-0.6b", flavor="cpu-upgrade", merge="4bit")
    with pytest.raises(RequestError, match="--load-in 16bit trains on others"):
        trained(merge="4bit", load_in="16bit")
    made = trained("qwen3-0.6b", merge="4bit")
    assert (made.decisions.load_in.value, made.reasons["load_in"]) == ("4bit", "what --merge 4bit saves, merged")
    assert trained("qwen3-0.6b", merge="16bit").decisions.load_in.value == "16bit"


@pytest.mark.parametrize("local", [False, True])
def test_what_llama_cpp_can_not_convert_is_refused_before_anything_is_paid_for(local: bool) -> None:
    folder = Adapter("me/houses", None, "unsloth/Llama-3.2-11B-Vision-Instruct", None, 16, 16, modality="vision")
    asked = build_export(source="me/houses", gguf=["q4_k_m"], local=local)
    makers: list[Callable[[], AnyPlan]] = [
        lambda: trained("llama-3.2-11b-vision", gguf=["q4_k_m"]),
        lambda: trained("llama-3.2-90b-vision", gguf=["f16"], merge="16bit"),
        lambda: export.make_plan(asked, folder, TABLES, today=TODAY, user="me", here=LAPTOP),
    ]
    for make in makers:
        with pytest.raises(RefusedError, match=r"llama\.cpp can't convert llama-3") as error:
            make()
        assert error.value.exit_code == 3
        assert "--merge 16bit works" in str(error.value.hint)
    assert trained("llama-3.2-11b-vision", merge="16bit").decisions.merge.value == "16bit"


def test_a_config_of_an_architecture_that_llama_cpp_can_not_convert_is_refused() -> None:
    known = TABLES.models["llama-3.2-11b-vision"]
    for model_type, refused in (("mllama", True), ("llama", False)):
        model = known.model_copy(update={"alias": "me/own", "family": None, "model_type": model_type})
        if refused:
            with pytest.raises(RefusedError, match="can't convert me/own"):
                choices.require_convertible(model, ("f16",), TABLES)
        else:
            choices.require_convertible(model, ("f16",), TABLES)
        choices.require_convertible(model, (), TABLES)


def test_a_merged_repo_is_the_users_like_the_output_repo() -> None:
    made = trained(merge="16bit", merged_repo="houses-merged", output_repo="houses")
    assert (made.decisions.output_repo.value, made.decisions.merged_repo.value) == ("me/houses", "me/houses-merged")
    assert trained(merge="16bit", merged_repo="org/m").decisions.merged_repo.value == "org/m"
    assert trained(merge="16bit", merged_repo="m", namespace="org").decisions.merged_repo.value == "org/m"


def test_what_is_not_pushed_stays_in_the_bucket_and_says_so() -> None:
    made = trained(merge="16bit", push=False)
    assert "stays in the Job's bucket, under output/" in made.reasons["merge"]
    assert "upload copies" not in made.duration.parts
    assert "keep copies" in made.duration.parts
    assert "bucket" not in trained(merge="16bit").reasons["merge"]


def test_a_local_run_needs_the_token_only_for_what_it_pushes() -> None:
    asked = {"model": "qwen3-0.6b", "local": True, "merge": "16bit"}
    assert choices.secrets(spec.build(dict(asked))).value == ()
    assert choices.secrets(spec.build({**asked, "merged_repo": "m"})).value == ("HF_TOKEN",)
    assert not choices.copies(spec.build(dict(asked))).pushed


def test_a_cost_limit_counts_the_copies() -> None:
    asked: dict[str, Any] = {"merge": "16bit", "gguf": ["q4_k_m"], "flavor": "l4x1", "load_in": "4bit"}
    limit = round(1.1 * trained(**asked).cost.expected_usd, 2)
    with pytest.raises(RefusedError) as caught:
        trained(**asked, max_cost=limit)
    [[steps, usd]] = re.findall(r"--max-steps (\d+) --flavor l4x1: about \$([0-9.]+)", caught.value.hint)
    assert trained(**asked, max_steps=int(steps)).cost.expected_usd == pytest.approx(float(usd), abs=0.011)
    bare = {name: value for name, value in asked.items() if name not in ("merge", "gguf")}
    alone = trained(**bare, max_cost=limit)
    assert f"own): about ${alone.cost.expected_usd:.2f}, at most" in caught.value.hint


# ---- Sizes -----------------------------------------------------------------------------------------------------------


def test_a_gguf_file_has_the_size_that_is_published() -> None:
    # llama.cpp's README: Llama 3.1 8B as q4_k_m is 4.58 GiB, as q8_0 7.95 GiB, as f16 14.96 GiB; never less is planned.
    model = TABLES.models["llama-3.1-8b"]
    for kind, gib in (("q4_k_m", 4.58), ("q8_0", 7.95), ("f16", 14.96)):
        assert 0.999 * gib <= copies.gguf_bytes(model, kind) / 2**30 <= 1.05 * gib
    order = [copies.gguf_bytes(model, kind) for kind in copies.GGUF_BITS]
    assert order == sorted(order, reverse=True)


def test_a_model_that_sees_brings_its_tower_once() -> None:
    model = TABLES.models["qwen3-vl-8b"]
    assert model.vision is not None
    one, two = (copies.kept_bytes(model, Copies(None, kinds)) for kinds in (("q4_k_m",), ("q4_k_m", "q8_0")))
    assert one == copies.gguf_bytes(model, "q4_k_m") + 2 * model.vision.params
    assert two - one == copies.gguf_bytes(model, "q8_0")


def test_what_a_gguf_file_is_made_from_counts_too() -> None:
    model = TABLES.models["qwen3-8b"]
    whole = 2 * model.params

    def disk(*kinds: str, merge: Any = None) -> float:
        return copies.disk_bytes(model, "16bit", Copies(merge, kinds)) / whole

    assert disk() == 0
    assert disk(merge="16bit") == 1
    assert disk("f16") == disk("f16", merge="16bit") == 2  # the merged copy and the file
    assert disk("q8_0") == pytest.approx(1 + 8.6 / 16)  # written by the converter
    assert disk("q4_k_m") == pytest.approx(2 + 5.1 / 16)  # quantised from a 16-bit file
    assert disk("q4_k_m", "q2_k") == pytest.approx(2 + (5.1 + 3.7) / 16)


# ---- An export of its own --------------------------------------------------------------------------------------------


def test_a_text_model_is_merged_on_the_cheapest_machine_that_holds_it() -> None:
    made = exported("unsloth/Qwen3-4B", merge="16bit")
    assert (made.task, made.decisions.adapter.value, made.decisions.adapter_revision.value) == (
        "export",
        "me/houses",
        COMMIT,
    )
    assert made.num_gpus == 0
    assert made.decisions.load_in.value == "16bit"
    flavor = TABLES.flavors[made.decisions.flavor.value]
    assert made.host.disk_gb <= flavor.disk_gb
    assert made.host.ram_gb <= flavor.ram_gb
    fitting = [offer for offer in made.offers if offer.fits]
    assert made.decisions.flavor.value == fitting[0].flavor
    assert made.cost.expected_usd == min(offer.expected_usd or 0 for offer in fitting)
    assert {offer.flavor for offer in made.offers} == set(TABLES.flavors)
    assert made.duration.total_s == sum(made.duration.parts.values())
    assert made.cost.expected_usd == pytest.approx(made.cost.usd_per_hour * made.duration.total_s / 3600, abs=0.006)
    for name in ("adapter", "flavor", "load_in", "merge", "output_repo", "timeout", "duration", "host", "secrets"):
        assert made.reasons[name], name


def test_the_copies_decide_the_machine() -> None:
    narrow, wide = exported(merge="16bit"), exported(merge="16bit", gguf=["q4_k_m"])
    assert narrow.host.disk_gb <= 50 < wide.host.disk_gb
    assert TABLES.flavors[wide.decisions.flavor.value].disk_gb >= wide.host.disk_gb
    assert exported("unsloth/Qwen3-0.6B", gguf=["q8_0"]).num_gpus == 0


@pytest.mark.parametrize(
    ("base", "options"),
    [
        ("unsloth/Qwen3-VL-8B-Instruct", {"merge": "16bit"}),
        ("unsloth/Qwen3-0.6B", {"merge": "4bit"}),
    ],
)
def test_what_needs_a_gpu_gets_one(base: str, options: dict[str, Any]) -> None:
    made = exported(base, **options)
    assert made.num_gpus == 1
    assert made.vram.peak_gib <= made.vram.available_gib
    without = [offer for offer in made.offers if offer.flavor.startswith("cpu-")]
    assert without and not any(offer.fits for offer in without)
    with pytest.raises(RefusedError, match=r"does not fit on cpu-performance: .* GPU") as caught:
        exported(base, flavor="cpu-performance", **options)
    [named] = re.findall(rf"--flavor ({made.decisions.flavor.value}): about \$([0-9.]+)", caught.value.hint)
    assert float(named[1]) == made.cost.expected_usd


def test_an_adapter_on_a_4bit_upload_is_merged_into_the_16bit_weights() -> None:
    base = "unsloth/Meta-Llama-3.1-70B-Instruct-bnb-4bit"
    whole = 2 * TABLES.models["llama-3.1-70b"].params
    narrow, wide = (exported(base, merge="16bit", flavor=flavor) for flavor in ("l40sx1", "h200"))
    assert (narrow.decisions.load_in.value, wide.decisions.load_in.value) == ("4bit", "16bit")
    assert narrow.duration.parts["16-bit weights"] == pytest.approx(whole / 200e6, abs=1)
    assert wide.duration.parts["download"] == pytest.approx(whole / 200e6, abs=1)
    assert "16-bit weights" not in wide.duration.parts
    assert narrow.host.disk_gb > wide.host.disk_gb > 2 * whole / 1e9
    small = exported("unsloth/gemma-2-2b-it-bnb-4bit", merge="16bit")
    assert (small.num_gpus, small.decisions.load_in.value) == (0, "16bit")


def test_a_machine_that_is_too_small_is_refused_with_what_would_do() -> None:
    with pytest.raises(RefusedError, match="does not fit on t4-small: disk: needs") as caught:
        exported(merge="16bit", gguf=["q4_k_m"], flavor="t4-small")
    assert "--merge 16bit alone: on t4-small" in caught.value.hint
    assert exported(merge="16bit", flavor="t4-small").decisions.flavor.value == "t4-small"
    for name in re.findall(r"--flavor (\S+):", caught.value.hint):
        assert exported(merge="16bit", gguf=["q4_k_m"], flavor=name).decisions.flavor.value == name


def test_the_copies_go_where_the_adapter_is_if_that_is_the_users() -> None:
    assert exported(merge="16bit").decisions.output_repo.value == "me/houses"
    other = exported(merge="16bit", place="you/houses")
    assert other.decisions.output_repo.value == "me/houses-export"
    assert exported(merge="16bit", place="you/houses", user=None).decisions.output_repo.value == "you/houses"
    of = trained(output_repo="org/houses", namespace="org")
    made = exported(merge="16bit", place="org/houses", of=of, merged_repo="merged")
    assert (made.decisions.output_repo.value, made.decisions.merged_repo.value, made.decisions.namespace.value) == (
        "org/houses",
        "org/merged",
        "org",
    )
    assert exported(merge="16bit", output_repo="elsewhere").decisions.output_repo.value == "me/elsewhere"


def test_the_copies_of_a_private_adapter_stay_private_unless_told_otherwise() -> None:
    assert exported(merge="16bit", private=True).decisions.private.value
    assert not exported(merge="16bit").decisions.private.value


def test_here_nothing_is_pushed_unless_told_where() -> None:
    made = exported(merge="16bit", local=True)
    assert (
        made.decisions.flavor.value,
        made.decisions.output_repo.value,
        made.decisions.secrets.value,
        made.cost.expected_usd,
    ) == ("local", None, (), 0)
    assert made.vram.fits
    pushed = exported(merge="16bit", local=True, merged_repo="m")
    assert (pushed.decisions.output_repo.value, pushed.decisions.merged_repo.value, pushed.decisions.secrets.value) == (
        None,
        "me/m",
        ("HF_TOKEN",),
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"output_repo": "me/m", "merged_repo": "me/m"},
        {"output_repo": "m", "merged_repo": "M"},
        {"output_repo": "m", "merged_repo": "me/m"},
        {"output_repo": "me/m", "merged_repo": "m"},
        {"merged_repo": "m", "run_name": "m"},
        {"output_repo": "m", "merged_repo": "org/m", "namespace": "org"},
    ],
)
def test_no_merged_model_goes_where_its_adapter_is(asked: dict[str, Any]) -> None:
    """Loaded by its repo's name, it would get the adapter a second time."""
    with pytest.raises(RequestError, match="is the adapter's repo") as caught:
        trained(merge="16bit", **asked)
    assert caught.value.exit_code == 2
    named = {name: value for name, value in asked.items() if name in ("output_repo", "merged_repo")}
    if len(named) == 2 and "namespace" not in asked:
        with pytest.raises(RequestError, match="is the adapter's repo"):
            exported(merge="16bit", **named)


def test_nor_does_one_of_an_adapter_that_was_there_before() -> None:
    for name in ("me/houses", "houses"):
        with pytest.raises(RequestError, match="is the adapter's repo"):
            exported(merge="16bit", merged_repo=name, output_repo="elsewhere")
    assert exported(merge="16bit", merged_repo="houses", place="you/houses").decisions.merged_repo.value == "me/houses"


def test_what_it_was_trained_as_is_what_is_exported() -> None:
    base = TABLES.models["gemma-3-4b"].repo
    assert (
        exported(base, merge="16bit").decisions.modality.value == TABLES.models["gemma-3-4b"].modalities[0] == "vision"
    )
    of = sample.plan(modality="text", output_repo="me/houses")
    assert exported(base, merge="16bit", of=of).decisions.modality.value == "text"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "neither --merge nor --gguf"),
        ({"merge": "8bit"}, "--merge '8bit'"),
        ({"gguf": ["q9"]}, "--gguf"),
        ({"gguf": ["q8_0"], "merged_repo": "m"}, "add --merge 16bit"),
        ({"merge": "16bit", "local": True, "flavor": "t4-small"}, "--local runs on this one"),
        ({"merge": "16bit", "timeout": "soon"}, "--timeout 'soon'"),
        ({"merge": "16bit", "output_repo": "a/b/c"}, "NAMESPACE/NAME"),
        ({"merge": "16bit", "flavor": "cpu-basc"}, "cpu-basc"),
    ],
)
def test_what_can_not_be_meant_says_so(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        exported(**options)
    assert said in caught.value.message
    assert caught.value.hint


def test_what_a_job_can_not_see_is_named() -> None:
    with pytest.raises(RequestError, match="/home/me/adapter is a folder on this machine"):
        exported(merge="16bit", place="/home/me/adapter")
    with pytest.raises(RequestError, match=r"trained on /home/me/base, a folder of the machine"):
        exported("/home/me/base", merge="16bit")
    with pytest.raises(RequestError, match=r"me/houses was trained on /home/me/base: there is no such folder"):
        exported("/home/me/base", merge="16bit", local=True)


def test_an_export_is_started_again_and_not_resumed() -> None:
    made = exported(merge="16bit", gguf=["q4_k_m", "f16"], merged_repo="m")
    again = command.export(made)
    assert again == (
        "launch export me/houses --merge 16bit --gguf q4_k_m --gguf f16 --merged-repo me/m --output-repo me/houses"
    )
    with pytest.raises(RequestError) as caught:
        reruns.require_training(made, "abc")
    assert again in caught.value.hint
    reruns.require_training(trained(), "abc")


@pytest.mark.parametrize(
    ("base", "modality"), [("unsloth/Qwen3-0.6B", "text"), ("unsloth/Qwen3-VL-2B-Instruct", "vision")]
)
def test_one_script_makes_the_copies_of_either_modality(base: str, modality: str) -> None:
    asked = request.from_plan(exported(base, merge="16bit", gguf=["q8_0"]), TABLES)
    assert asked.script_name == "export.py"
    compile(asked.script, "export.py", "exec")
    options = dict(re.findall(r"^    (\w+): Annotated\[.*\] = (.*)$", asked.script, re.MULTILINE))
    chosen = {"adapter": "me/houses", "adapter_revision": COMMIT, "merge": "16bit", "gguf": ("q8_0",)}
    chosen |= {"model": base, "modality": modality}
    assert {name: ast.literal_eval(options[name]) for name in chosen} == chosen
    assert asked.labels["adapter"] == "me--houses"


def test_an_export_measures_no_training() -> None:
    run = runs.create(request.from_plan(exported("unsloth/Qwen3-0.6B", merge="16bit"), TABLES), "hub").rename("abc")
    run.write("log", 'RESULT {"status": "done"}\n')
    with pytest.raises(RequestError, match="abc is an export, which trains nothing"):
        calibrate.measure("abc", TABLES)


def test_without_a_gpu_the_ram_holds_the_model_and_its_merged_copy() -> None:
    whole = 2 * TABLES.models["qwen3-8b"].params / 1e9
    made = exported(merge="16bit", flavor="cpu-xl")
    assert made.host.ram_gb >= 2.36 * whole + 0.8  # what was measured of 0.81 billion weights, for these
    with pytest.raises(RefusedError, match=r"RAM: needs \d+ GB, has 32 GB"):
        exported(merge="16bit", flavor="cpu-upgrade")
    here = Flavor(name="local", vcpu=8, ram_gb=64, disk_gb=500, usd_per_hour=0)
    for_cpu: dict[str, Any] = {"model": "qwen3-1.7b", "local": True, "batch_size": 1}
    plain, merged = (
        planner.make_plan(spec.build(for_cpu | more), TABLES, today=TODAY, here=here)
        for more in ({}, {"merge": "16bit"})
    )
    weights = 2 * TABLES.models["qwen3-1.7b"].params / 1e9
    assert merged.host.ram_gb - plain.host.ram_gb == pytest.approx(weights, abs=0.2)


# ---- What an adapter says of itself ----------------------------------------------------------------------------------


def config(**changes: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "base_model_name_or_path": "a/b", "r": 8, "lora_alpha": 4} | changes


def test_an_adapter_is_what_its_files_say() -> None:
    record = {"plan": {"modality": "vision"}, "revisions": {"model": COMMIT, "dataset": None}}
    found = adapter.read("me/x", config(), record, revision="b" * 40)
    assert found == Adapter("me/x", "b" * 40, "a/b", COMMIT, 8, 4, "vision")
    bare = adapter.read("me/x", config(), None, revision=None)
    assert (bare.base_revision, bare.modality) == (None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"peft_type": None}, "only LoRA"),
        ({"base_model_name_or_path": None}, "does not say which model"),
        ({"base_model_name_or_path": "a/b\n--merge"}, "does not say which model"),
        ({"base_model_name_or_path": "~nobody-of-that-name/base"}, "does not say which model"),
        ({"base_model_name_or_path": "/" + "a" * 300}, "does not say which model"),
    ],
)
def test_what_is_no_lora_adapter_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as caught:
        adapter.read("me/x", config(**changes), None, revision=None)
    assert said in caught.value.message


@pytest.mark.parametrize(
    "record", [{"plan": [], "revisions": "x"}, {"plan": {"modality": "smell"}, "revisions": {"model": "main; rm"}}, {}]
)
def test_a_record_that_is_no_record_is_left_aside(record: dict[str, Any]) -> None:
    found = adapter.read("me/x", config(r="many", lora_alpha=-1), record, revision=None)
    assert (found.base_revision, found.modality, found.rank, found.alpha) == (None, None, 16, 16)


def test_a_folder_is_read_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no adapter_config\.json"):
        adapter.read_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(RequestError, match="is not JSON"):
        adapter.read_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config()))
    (tmp_path / "run.json").write_text("not JSON")
    found = adapter.read_folder(tmp_path)
    assert (found.place, found.base, found.local) == (str(tmp_path.resolve()), "a/b", True)


def test_a_folder_that_a_repo_names_as_its_base_is_not_published(tmp_path: Path) -> None:
    """Whoever wrote that adapter_config.json could name any model of this machine."""
    places: list[dict[str, Any]] = [{"output_repo": "me/copies"}, {"merged_repo": "me/merged"}]
    for options in places:
        with pytest.raises(RefusedError, match="would publish that model"):
            exported(str(tmp_path), place="else/adapter", merge="16bit", local=True, **options)
