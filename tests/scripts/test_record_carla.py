"""The CARLA recorder against a strict stand-in for CARLA's Python client."""

import importlib
import json
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "record_carla.py"


class Strict:
    """Knows what it was given and what its class defines; nothing else may be read or set."""

    def __init__(self, **known):
        self.__dict__.update(known)

    def __setattr__(self, name, value):
        if name not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        self.__dict__[name] = value


class WeatherParameters(Strict):
    def cloudiness(self):
        raise AssertionError("not a preset")


for _name in ("ClearNoon", "HardRainNoon", "WetSunset"):
    setattr(WeatherParameters, _name, WeatherParameters(name=_name))


class Server:
    """What the fake client talks to: it keeps every call, and can be told to misbehave."""

    def __init__(self):
        self.calls, self.alive, self.delivered = [], {}, {}
        self.frame, self.next_id = 1000, 1
        self.settings = {"synchronous_mode": False, "fixed_delta_seconds": None, "substeps": 7}
        self.traffic_synchronous = False
        self.late = self.silent_from = self.fail_tick = self.weather = self.listener = None
        self.places, self.blocked = 5, {0}

    def note(self, *call):
        self.calls.append(call)

    def named(self, name):
        return [call[1:] for call in self.calls if call[0] == name]


class Blueprint(Strict):
    def get_attribute(self, name):
        return self.attributes[name]

    def set_attribute(self, name, value):
        assert isinstance(value, str) and name in self.attributes
        self.attributes[name] = value


class Library(Strict):
    def find(self, name):
        camera = {"image_size_x": "800", "image_size_y": "600", "fov": "90", "sensor_tick": "0"}
        return {
            "sensor.camera.rgb": Blueprint(id="sensor.camera.rgb", attributes=camera),
            "vehicle.tesla.model3": vehicle("vehicle.tesla.model3"),
        }[name]

    def filter(self, pattern):
        assert pattern == "vehicle.*"
        return [vehicle("vehicle.b"), vehicle("vehicle.a"), vehicle("vehicle.bike", "2")]


def vehicle(name, wheels="4"):
    return Blueprint(id=name, attributes={"number_of_wheels": wheels})


class Actor(Strict):
    def set_autopilot(self, enabled, port):
        assert self.kind.id.startswith("vehicle.") and port == 8123
        assert self.server.traffic_synchronous and enabled is True
        self.server.note("autopilot", self.id)

    def listen(self, callback):
        assert self.kind.id == "sensor.camera.rgb"
        self.server.listener = (callback, self.kind.attributes)

    def stop(self):
        self.server.note("stop", self.id)
        self.server.listener = None

    def destroy(self):
        assert self.server.listener is None, "destroyed while it sends"
        self.server.note("destroy", self.id)
        del self.server.alive[self.id]
        return True


class World(Strict):
    def get_settings(self):
        return Strict(**self.server.settings)

    def apply_settings(self, settings):
        self.server.note("settings", dict(vars(settings)))
        self.server.settings = dict(vars(settings))
        return self.server.frame

    def set_weather(self, weather):
        assert isinstance(weather, WeatherParameters)
        self.server.weather = weather.name

    def get_blueprint_library(self):
        return Library()

    def get_map(self):
        points = [Strict(place=i) for i in range(self.server.places)]
        return SimpleNamespace(get_spawn_points=lambda: points)

    def try_spawn_actor(self, kind, place):
        taken = {actor.place for actor in self.server.alive.values()} | self.server.blocked
        return None if place.place in taken else self.spawn_actor(kind, place)

    def spawn_actor(self, kind, place, attach_to=None):
        if kind.id.startswith("sensor"):
            assert attach_to.id in self.server.alive
        where = getattr(place, "place", "car")
        server = self.server
        actor = Actor(server=server, id=server.next_id, kind=kind, place=where)
        server.alive[actor.id] = actor
        server.note("spawn", actor.id, kind.id, where)
        server.next_id += 1
        return actor

    def tick(self, seconds):
        server = self.server
        assert (
            server.settings["synchronous_mode"] and server.settings["fixed_delta_seconds"] == 0.05
        )
        assert server.traffic_synchronous and seconds > 0
        server.frame += 1
        server.note("tick", server.frame)
        if server.fail_tick is not None and len(server.named("tick")) == server.fail_tick[0]:
            raise server.fail_tick[1]
        if server.listener and not (server.silent_from and server.frame >= server.silent_from):
            self.deliver(*server.listener)
        return server.frame

    def deliver(self, callback, attributes):
        server = self.server
        width, height = int(attributes["image_size_x"]), int(attributes["image_size_y"])
        pixels = np.random.default_rng(server.frame).integers(0, 256, (height, width, 4), np.uint8)
        server.delivered[server.frame] = (pixels, server.weather)

        def image(frame, data):
            return Strict(frame=frame, width=width, height=height, raw_data=data.tobytes())

        current = image(server.frame, pixels)
        if not server.late:
            return callback(current)
        stale = image(server.frame - 1, 255 - pixels), image(server.frame + 1, pixels // 2)
        threading.Timer(0.01, lambda: [callback(sent) for sent in (*stale, current)]).start()


class Traffic(Strict):
    def get_port(self):
        return 8123

    def set_synchronous_mode(self, on):
        self.server.traffic_synchronous = on

    def set_random_device_seed(self, seed):
        self.server.note("seed", seed)


class Client(Strict):
    def set_timeout(self, seconds):
        self.server.note("timeout", seconds)

    def get_server_version(self):
        return "0.9.15"

    def get_available_maps(self):
        return ["/Game/Carla/Maps/Town02", "/Game/Carla/Maps/Town01", "/Game/Carla/Town11/Town11"]

    def get_world(self):
        return World(server=self.server)

    def load_world(self, name):
        assert not self.server.alive, "actors of the world before are left"
        assert not self.server.traffic_synchronous, "carla issue 3220"
        self.server.note("load", name)
        self.server.settings |= {"synchronous_mode": False, "fixed_delta_seconds": None}
        return World(server=self.server)

    def get_trafficmanager(self, port):
        assert port == 8000
        return Traffic(server=self.server)

    def apply_batch_sync(self, commands, due_tick_cue):
        assert due_tick_cue is False
        for actor in commands:
            self.server.note("destroy", actor)
            del self.server.alive[actor]
        return [Strict(error="") for _ in commands]


@pytest.fixture
def record(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    module = importlib.import_module("record_carla")
    server = Server()
    carla = SimpleNamespace(
        Client=lambda host, port: Client(server=server),
        WeatherParameters=WeatherParameters,
        Transform=lambda location: Strict(location=location),
        Location=lambda x, z: Strict(x=x, z=z),
        command=SimpleNamespace(DestroyActor=lambda actor: actor),
    )
    monkeypatch.setitem(sys.modules, "carla", carla)

    def run(*args):
        small = "--width 6 --height 4 --frames 3 --every 2 --vehicles 2 --timeout 0.5".split()
        return module.main([*small, "--output", str(tmp_path), "--weather", "ClearNoon", *args])

    return SimpleNamespace(run=run, module=module, server=server, carla=carla, output=tmp_path)


def images(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): np.array(Image.open(path)) for path in paths}


def assert_clean(server, loads):
    spawned = [call[0] for call in server.named("spawn")]
    assert not server.alive and sorted(x for (x,) in server.named("destroy")) == spawned
    assert server.settings == Server().settings and not server.traffic_synchronous
    assert [call[0] for call in server.named("load")] == loads
    assert server.listener is None


@pytest.mark.parametrize("late", [False, True])
def test_files_hold_what_the_camera_delivered(record, late):
    record.server.late = late
    weather = ["ClearNoon", "WetSunset"]
    assert record.run("--towns", "Town01", "--weather", *weather) == 0
    found, ticks = images(record.output), [call[0] for call in record.server.named("tick")]
    assert list(found) == [f"train/Town01_{i:06d}.png" for i in range(3)]
    assert len(ticks) == record.module.WARM_UP_TICKS + 3 * 2
    for i, (array, frame) in enumerate(zip(found.values(), ticks[-5::2], strict=True)):
        bgra, taken_in = record.server.delivered[frame]
        assert array.shape == (4, 6, 3) and taken_in == weather[i % 2]
        assert (array == np.stack([bgra[..., 2], bgra[..., 1], bgra[..., 0]], -1)).all()
    assert_clean(record.server, ["Town01"])


def test_simulation_is_synchronous_and_the_cars_drive(record):
    assert record.run("--towns", "Town01", "--fov", "70") == 0
    changed, back = record.server.named("settings")
    assert changed[0] == {"synchronous_mode": True, "fixed_delta_seconds": 0.05, "substeps": 7}
    assert back[0] == Server().settings
    first, *others, camera = record.server.named("spawn")
    assert first[1] == "vehicle.tesla.model3" and camera[1:] == ("sensor.camera.rgb", "car")
    assert {kind for _, kind, _ in others} <= {"vehicle.a", "vehicle.b"} and len(others) == 2
    assert record.server.named("autopilot") == [(car[0],) for car in (first, *others)]
    assert 0 not in {place for _, _, place in (first, *others)}  # is not free
    assert record.server.named("timeout") == [(0.5,)]


def test_test_towns_have_a_folder_of_their_own(record):
    assert record.run("--towns", "Town01", "Town02", "--test-towns", "Town02") == 0
    names = [f"{part}_{i:06d}.png" for part in ("test/Town02", "train/Town01") for i in range(3)]
    assert list(images(record.output)) == names
    assert_clean(record.server, ["Town01", "Town02"])


def drawn(server):
    return server.named("seed"), server.named("spawn")


def test_a_second_run_continues_and_the_seed_decides(record, tmp_path):
    assert record.run("--towns", "Town01") == 0
    before, server = images(record.output), record.server
    first = drawn(server)
    server.calls, server.next_id = [], 1
    assert record.run("--towns", "Town01", "--weather", "ClearNoon", "WetSunset") == 0
    after = images(record.output)
    assert list(after) == [f"train/Town01_{i:06d}.png" for i in range(6)]
    assert all((after[name] == array).all() for name, array in before.items())
    assert drawn(server)[0] != first[0]  # another drive, not the same again
    weather = [server.delivered[call[0]][1] for call in server.named("tick")[-5::2]]
    assert weather == ["WetSunset", "ClearNoon", "WetSunset"]  # continues, too
    server.calls, server.next_id = [], 1
    assert record.run("--towns", "Town01", "--output", str(tmp_path / "again")) == 0
    assert drawn(server) == first
    server.calls, server.next_id = [], 1
    assert record.run("--towns", "Town01", "--output", str(tmp_path / "7"), "--seed", "7") == 0
    assert drawn(server)[0] != first[0]


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [(RuntimeError("server is gone"), 1, "server is gone"), (KeyboardInterrupt(), 130, "interr")],
)
def test_whatever_ends_it_the_server_is_left_as_it_was(record, capsys, raised, status, said):
    record.server.fail_tick = (record.module.WARM_UP_TICKS + 4, raised)
    assert record.run("--towns", "Town01", "Town02") == status
    assert said in capsys.readouterr().err
    assert list(images(record.output)) == ["train/Town01_000000.png"]
    assert_clean(record.server, ["Town01"])


def test_an_error_while_cleaning_up_does_not_keep_the_rest(record, monkeypatch, capsys):
    def refuse(self):
        raise RuntimeError("cannot stop")

    monkeypatch.setattr(Actor, "stop", refuse)
    record.server.fail_tick = (3, RuntimeError("server is gone"))
    monkeypatch.setattr(Actor, "destroy", lambda self: self.server.alive.pop(self.id))
    assert record.run("--towns", "Town01") == 1
    assert not record.server.alive and record.server.settings == Server().settings
    assert "cannot stop" in capsys.readouterr().err


def test_a_camera_that_sends_nothing_is_an_error(record, capsys):
    record.server.silent_from = 1005
    assert record.run("--towns", "Town01", "--timeout", "0.05") == 1
    assert "no image of frame 1005 within 0.05 s" in capsys.readouterr().err
    assert_clean(record.server, ["Town01"])


def test_a_town_without_a_free_place(record, capsys):
    record.server.blocked = set(range(5))
    assert record.run("--towns", "Town11") == 1
    assert "Town11 has no free place" in capsys.readouterr().err
    assert_clean(record.server, ["Town11"])


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--towns", "Town01", "Town99"], "--towns (=Town99) is unknown; there is Town01, Town02"),
        (
            ["--towns", "Town01", "--weather", "Clear", "cloudiness"],
            "--weather (=Clear, cloudiness) is unknown; there is ClearNoon",
        ),
    ],
)
def test_unknown_names_are_listed_before_anything_happens(record, capsys, args, said):
    assert record.run(*args) == 1
    assert said in capsys.readouterr().err
    assert not record.server.named("load") and not images(record.output)


def test_a_server_that_does_not_answer(record, monkeypatch, capsys):
    def no_answer(self):
        raise RuntimeError("time-out of 500ms while waiting for the simulator")

    monkeypatch.setattr(Client, "get_server_version", no_answer)
    assert record.run("--port", "2010") == 1
    said = capsys.readouterr().err
    for part in (":2010", "time-out of 500ms", "./CarlaUE4.sh -RenderOffScreen", "rpc-port=2010"):
        assert part in said


def test_without_the_client_the_message_says_how_to_install_it(record, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "carla", None)
    assert record.run() == 1
    assert "pip install 'branchprune[carla]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument", ["--frames=0", "--every=-1", "--vehicles=-1", "--fov=180", "--test-towns=Town05"]
)
def test_a_wrong_argument_is_named(record, capsys, argument):
    with pytest.raises(SystemExit):
        record.run(argument)
    name, value = argument.split("=")
    assert re.search(rf"{name} \(={value}\)", capsys.readouterr().err)


def test_the_stand_in_knows_nothing_else(record):
    """Else a wrong call would pass."""
    world = World(server=record.server)
    for call in (
        lambda: world.no_such_call,
        lambda: setattr(world.get_settings(), "no_such_setting", 1),
        lambda: record.carla.no_such_class,
    ):
        with pytest.raises(AttributeError):
            call()
    with pytest.raises(TypeError):
        world.tick()


def test_the_real_client_has_what_the_stand_in_has(monkeypatch):
    """And what the recorder uses besides: compared with the names of CARLA's own classes."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    real = json.loads((Path(__file__).parent / "carla_client.json").read_text())
    stand_ins = {
        "Client": Client,
        "World": World,
        "TrafficManager": Traffic,
        "BlueprintLibrary": Library,
        "ActorBlueprint": Blueprint,
    }
    for name, stand_in in stand_ins.items():
        used = {key for key in vars(stand_in) if not key.startswith("_")} - {"deliver"}
        assert used and used <= {*real[name]}, name
    used = {key for key in vars(Actor) if not key.startswith("_")} | {"id"}
    assert used <= {*real["Sensor"], *real["Vehicle"]}
    assert {"frame", "width", "height", "raw_data"} <= {*real["Image"]}
    assert {"synchronous_mode", "fixed_delta_seconds"} <= {*real["WorldSettings"]}
    assert {"x", "z"} <= {*real["Location"]} and "location" in real["Transform"]
    assert "get_spawn_points" in real["Map"] and "DestroyActor" in real["command"]
    presets = importlib.import_module("record_carla").DEFAULT_WEATHER
    assert {*presets} <= {*real["WeatherParameters"]}
