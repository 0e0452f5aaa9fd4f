"""Deployments on several boxes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from llm_routerd.routing.chains import names, resolve
from tests.config.configs import error, load

BOXES = """
[boxes.attic]
api_base = "http://attic.lan:11434"
slots = 2
reserve = 1
memory_gb = 24.0
[boxes.desk]
api_base = "http://desk.lan:11434"
[deployments.qwen]
model = "ollama/qwen3:32b"
boxes = ["attic", "desk"]
local = true
timeout = 99.0
pin = true
[chains.mine]
deployments = ["haiku", "qwen", "sonnet"]
"""


def test_deployment_on_boxes_is_one_for_each() -> None:
    """With all that it says, at the box's address, in the place of its name in every chain."""
    config = load(BOXES)
    attic, desk = config.deployments["qwen@attic"], config.deployments["qwen@desk"]
    assert (attic.api_base, attic.box, attic.group, attic.concurrency) == ("http://attic.lan:11434", "attic", "qwen", 2)
    assert desk == replace(attic, name="qwen@desk", api_base="http://desk.lan:11434", box="desk", concurrency=1)
    assert (attic.timeout, attic.local, attic.pin, attic.boxes) == (99.0, True, True, ())
    assert config.chains["mine"].deployments == ("haiku", "qwen@attic", "qwen@desk", "sonnet")
    assert "qwen" not in config.deployments
    assert (config.boxes["attic"].reserve, config.boxes["attic"].memory_gb) == (1, 24.0)


def test_request_may_name_it_as_it_stands_in_the_file() -> None:
    """It is a chain of the same model on each box."""
    config = load(BOXES)
    chain = resolve(config, "qwen")
    assert chain is not None
    assert chain.deployments == ("qwen@attic", "qwen@desk")
    assert "qwen" in names(config)
    one = resolve(config, "qwen@desk")
    assert one is not None
    assert one.deployments == ("qwen@desk",)


def test_slot_is_waited_for_longer_than_a_call_elsewhere() -> None:
    """A model may have to be loaded first; what the file says holds."""
    assert load(BOXES).deployments["qwen@desk"].queue_timeout == 60.0
    waits = load(BOXES.replace("timeout = 99.0", "queue_timeout = 7.0"))
    assert waits.deployments["qwen@desk"].queue_timeout == 7.0


def test_configuration_without_boxes_is_what_it_was() -> None:
    """Each deployment stands at its address."""
    config = load("")
    assert not config.boxes
    assert all(each.box is None and each.group is None for each in config.deployments.values())


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('["attic", "desk"]', '["atic"]', "deployments.qwen.boxes: there is no box 'atic'; did you mean `attic`?"),
        ('["attic", "desk"]', '["desk", "desk"]', "deployments.qwen.boxes: "),
        ("pin = true", 'api_base = "http://x"', "deployments.qwen.boxes: stands in the place of `api_base`"),
        ("reserve = 1", "reserve = 2", "boxes.attic.reserve: must be less than its slots, 2"),
        ("slots = 2", "slots = 0", "boxes.attic.slots: "),
        ("slots = 2", "slot = 2", "boxes.attic.slot: unknown key; did you mean `slots`?"),
        ('api_base = "http://attic.lan:11434"', "", "boxes.attic: the key `api_base` is missing"),
        ('"http://attic.lan:11434"', '"attic.lan"', "boxes.attic.api_base: expected an address"),
        (
            "memory_gb = 24.0",
            'kind = "vllm"',
            "deployments.qwen.boxes: on attic, whose kind is vllm, a model is openai/…",
        ),
        ('"ollama/qwen3:32b"', '"openai/qwen3"', "deployments.qwen.boxes: on attic, whose kind is ollama, a model is"),
        ("[boxes.attic]", "[boxes.'at@tic']", "boxes: a name may hold letters, digits"),
        ("timeout = 99.0", "box = 'attic'", "deployments.qwen.box: unknown key"),
    ],
)
def test_unsound_boxes_are_told(old: str, new: str, told: str) -> None:
    """By key, with the remedy."""
    assert old in BOXES
    assert error(BOXES.replace(old, new)).startswith(told)


WAKE = """
[boxes.attic]
api_base = "http://attic.lan:11434"
wake = "aa:bb:cc:dd:ee:ff"
wake_seconds = 70.0
wake_address = "192.168.2.255:7"
sleep_after = 900.0
sleep_command = ["ssh", "attic", "systemctl suspend"]
"""


def test_box_that_sleeps_says_how_it_is_woken_and_put_to_sleep() -> None:
    """A MAC address is enough: the packet then goes to the broadcast address, and a boot is expected to take 90 s."""
    attic = load(WAKE).boxes["attic"]
    assert (attic.wake, attic.wake_seconds, attic.wake_at) == ("aa:bb:cc:dd:ee:ff", 70.0, ("192.168.2.255", 7))
    assert (attic.sleep_after, attic.sleep_command) == (900.0, ("ssh", "attic", "systemctl suspend"))
    assert "systemctl" not in repr(attic), "a word of it may have come from a secret"
    least = load('[boxes.attic]\napi_base = "http://attic:1"\nwake = "AA-BB-CC-DD-EE-FF"').boxes["attic"]
    assert (least.wake_seconds, least.wake_at, least.sleep_after) == (90.0, ("255.255.255.255", 9), 0.0)
    assert load(BOXES).boxes["attic"].wake == ""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("aa:bb:cc:dd:ee:ff", "aa:bb:cc:dd:ee", "boxes.attic.wake: expected a MAC address like aa:bb:cc:dd:ee:ff"),
        ("aa:bb:cc:dd:ee:ff", "aa:bb:cc-dd:ee:ff", "boxes.attic.wake: expected a MAC address"),
        ("aa:bb:cc:dd:ee:ff", "aa:bb:cc:dd:ee:fg", "boxes.attic.wake: expected a MAC address"),
        ("aa:bb:cc:dd:ee:ff", "01:bb:cc:dd:ee:ff", "boxes.attic.wake: no machine has this address"),
        ("aa:bb:cc:dd:ee:ff", "00:00:00:00:00:00", "boxes.attic.wake: no machine has this address"),
        ("70.0", "0.0", "boxes.attic.wake_seconds: "),
        ("192.168.2.255:7", "http://attic.lan", "boxes.attic.wake_address: expected an address like"),
        ("192.168.2.255:7", "192.168.2.255:70000", "boxes.attic.wake_address: its port must be from 1 to 65535"),
        ("192.168.2.255:7", "192.168.2.255:0", "boxes.attic.wake_address: its port must be from 1 to 65535"),
        ("sleep_after = 900.0", "", "boxes.attic.sleep_command: has a meaning beside `sleep_after` only"),
        (
            'sleep_command = ["ssh", "attic", "systemctl suspend"]',
            "",
            "boxes.attic.sleep_after: has a meaning beside `sleep_command` only",
        ),
        ('["ssh", "attic", "systemctl suspend"]', '"ssh attic"', "boxes.attic.sleep_command: expected a list"),
        ('["ssh", ', '["", ', "boxes.attic.sleep_command: its first word names the program"),
        ("900.0", "-1.0", "boxes.attic.sleep_after: "),
        ('wake = "aa:bb:cc:dd:ee:ff"', "", "boxes.attic.sleep_after: needs `wake`, or nobody wakes it again"),
    ],
)
def test_unsound_ways_to_wake_and_sleep_are_told(old: str, new: str, told: str) -> None:
    """By key; what belongs together is given together."""
    assert old in WAKE
    assert error(WAKE.replace(old, new)).startswith(told)


def test_built_in_deployment_may_stand_on_boxes() -> None:
    """The file's boxes are in the place of the address that it has else, and that the environment gives."""
    text = BOXES + "[deployments.local]\nboxes = ['desk']\n"
    config = load(text, OLLAMA_API_BASE="http://elsewhere:1", OLLAMA_MODEL="llama3")
    assert config.deployments["local@desk"].api_base == "http://desk.lan:11434"
    assert config.deployments["local@desk"].model == "ollama/llama3"
    assert config.chains["default"].deployments[0] == "local@desk"


def test_key_of_a_provider_goes_to_no_box() -> None:
    """`openai/` with boxes is somebody else's server; a key of its own is written there."""
    text = """
    [boxes.gpu]
    api_base = "http://gpu.lan:8000"
    kind = "vllm"
    [deployments.big]
    model = "openai/big"
    boxes = ["gpu"]
    """
    big = load(text, OPENAI_API_KEY="sekret").deployments["big@gpu"]
    assert (big.api_key, big.key_missing) == (None, None)
    assert load(text + 'api_key = "own"').deployments["big@gpu"].api_key == "own"
