"""Record camera images from a running CARLA server, as training and test images.

```
./CarlaUE4.sh -RenderOffScreen                # the server, CARLA 0.9.x, where it was unpacked
pip install 'branchprune[carla]'              # the client; its version should be the server's
python scripts/record_carla.py --towns Town01 Town02 --test-towns Town02 --frames 1000
```

In every town a car drives on autopilot through other traffic. The simulation is synchronous: it
moves on by 0.05 s a tick, and only after the camera's image of the tick before has arrived. Every
`--every` ticks an image is saved as `OUTPUT/train/<Town>_<number>.png`, or `OUTPUT/test/…` for the
towns of `--test-towns`. The weather changes after each saved image, through `--weather` in turn.

A run adds `--frames` images a town to those that are there; cars, places and routes follow from
the seed, the town and the number of the first image, so a second run is another drive. Whatever
ends a run, its cars and camera are removed and the server's settings put back.
"""

from __future__ import annotations

import argparse
import importlib
import queue
import random
import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TICK_SECONDS = 0.05
WARM_UP_TICKS = 20  # cars fall onto the road, the exposure settles
CAR = "vehicle.tesla.model3"
CAMERA_POSITION = {"x": 1.5, "z": 2.4}  # metres in front of and above the middle of the car
DEFAULT_WEATHER = ("ClearNoon", "CloudyNoon", "WetNoon", "HardRainNoon", "ClearSunset")


class RecordingError(RuntimeError):
    """Something that is missing or wrong outside this script, with what to do about it."""


def main(args: Sequence[str] | None = None) -> int:
    """Record all towns; return 0, 1 after an error, 130 if it was interrupted."""
    options = _parse(args)
    try:
        carla = _carla()
        client = _connect(carla, options)
        _check(carla, client, options)
        for town in options.towns:
            record_town(carla, client, town, options)
    except KeyboardInterrupt:
        print("record_carla: interrupted; the images saved so far are complete", file=sys.stderr)
        return 130
    except (RuntimeError, OSError) as error:  # CARLA's own errors are RuntimeErrors
        print(f"record_carla: error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("record_carla.py", description=__doc__.split("\n", 1)[0])
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="where the server runs")
    add("--port", type=int, default=2000, help="the server's port")
    add("--tm-port", type=int, default=8000, help="port for the traffic manager")
    add("--towns", nargs="+", default=["Town01", "Town02"], help="maps to record")
    add("--test-towns", nargs="*", default=[], help="those of the towns that go to OUTPUT/test")
    add("--weather", nargs="+", default=[*DEFAULT_WEATHER], help="presets, taken in turn")
    add("--frames", type=int, default=1000, help="images a town that are added")
    add("--every", type=int, default=10, help="ticks of 0.05 s from one saved image to the next")
    add("--width", type=int, default=128, help="of an image, in pixels")
    add("--height", type=int, default=128, help="of an image, in pixels")
    add("--fov", type=float, default=90.0, help="horizontal field of view, in degrees")
    add("--vehicles", type=int, default=30, help="other cars a town")
    add("--output", type=Path, default=Path("data/carla"), help="folder for train/ and test/")
    add("--seed", type=int, default=0, help="of cars, places and routes")
    add("--timeout", type=float, default=30.0, help="seconds to wait for the server or the camera")
    options = parser.parse_args(args)
    for name in ("frames", "every", "width", "height", "timeout", "vehicles"):
        if (value := getattr(options, name)) < 0 or (value == 0 and name != "vehicles"):
            parser.error(f"--{name} (={value}) is too small")
    if not 0 < options.fov < 180:
        parser.error(f"--fov (={options.fov:g}) must be between 0 and 180")
    if extra := set(options.test_towns) - set(options.towns):
        parser.error(f"--test-towns (={', '.join(sorted(extra))}) must be among --towns")
    return options


def _carla() -> Any:
    """Return CARLA's Python client."""
    try:
        return importlib.import_module("carla")
    except ImportError as error:
        hint = "`pip install 'branchprune[carla]'`, or carla==VERSION with that of your server"
        raise RecordingError(f"CARLA's Python client is missing ({error}): {hint}") from error


def _connect(carla: Any, options: argparse.Namespace) -> Any:
    """Return a client that has had an answer from the server."""
    try:
        client = carla.Client(options.host, options.port)
        client.set_timeout(options.timeout)
        client.get_server_version()
    except RuntimeError as error:
        raise RecordingError(
            f"no CARLA server answers at {options.host}:{options.port} ({error}). Start one with "
            "`./CarlaUE4.sh -RenderOffScreen` (CARLA 0.9.x), give it a minute, and add "
            f"`-carla-rpc-port={options.port}` if the port is not 2000"
        ) from error
    return client


def _check(carla: Any, client: Any, options: argparse.Namespace) -> None:
    """Raise an error that lists what there is if a town or a weather is unknown."""
    towns = sorted({path.rsplit("/", 1)[-1] for path in client.get_available_maps()})
    weather = [name for name in dir(carla.WeatherParameters) if name[0].isupper()]
    for option, known in (("towns", towns), ("weather", weather)):
        if unknown := [name for name in getattr(options, option) if name not in known]:
            names, there = ", ".join(unknown), ", ".join(known)
            raise RecordingError(f"--{option} (={names}) is unknown; there is {there}")


def record_town(carla: Any, client: Any, town: str, options: argparse.Namespace) -> None:
    """Load a town, drive through it and save its images; leave nothing behind in the server.

    Raises:
        RecordingError: There is no free place for the car, or the camera sends nothing.
    """
    folder = options.output / ("test" if town in options.test_towns else "train")
    folder.mkdir(parents=True, exist_ok=True)
    first = next_number(folder, town)
    rng = random.Random(f"{options.seed} {town} {first}")
    original = client.get_world().get_settings()
    world = client.load_world(town)
    with ExitStack() as undo:  # backwards, each step whatever becomes of the others
        cars: list[Any] = []
        undo.callback(_destroy, carla, client, cars)
        undo.callback(world.apply_settings, original)
        _make_synchronous(world)
        traffic = client.get_trafficmanager(options.tm_port)
        undo.callback(traffic.set_synchronous_mode, False)
        traffic.set_synchronous_mode(True)
        traffic.set_random_device_seed(rng.randrange(2**31))
        spawn_cars(world, town, cars, options.vehicles, rng)
        for car in cars:
            car.set_autopilot(True, traffic.get_port())
        camera = Camera(world, _spawn_camera(carla, world, cars[0], options, undo), options.timeout)
        presets = [getattr(carla.WeatherParameters, name) for name in options.weather]
        for number in range(first, first + options.frames):
            world.set_weather(presets[number % len(presets)])
            for _ in range(options.every + (WARM_UP_TICKS if number == first else 0)):
                image = camera.tick()
            save(image, folder / f"{town}_{number:06d}.png")
    print(f"{town}: {options.frames} images, {folder / f'{town}_{first:06d}.png'} and following")


def next_number(folder: Path, town: str) -> int:
    """Return the number behind that of the last image of a town."""
    names = (path.name for path in folder.iterdir())
    found = (re.fullmatch(rf"{re.escape(town)}_(\d+)\.png", name) for name in names)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _make_synchronous(world: Any) -> None:
    settings = world.get_settings()
    settings.synchronous_mode = True
    settings.fixed_delta_seconds = TICK_SECONDS
    world.apply_settings(settings)


def spawn_cars(world: Any, town: str, cars: list[Any], others: int, rng: random.Random) -> None:
    """Append to `cars` the one for the camera, then others as far as there are free places."""
    library = world.get_blueprint_library()
    kinds = sorted(library.filter("vehicle.*"), key=lambda kind: str(kind.id))
    kinds = [kind for kind in kinds if int(kind.get_attribute("number_of_wheels")) == 4]
    places = list(world.get_map().get_spawn_points())
    rng.shuffle(places)
    for place in places:
        if len(cars) > others:
            break
        kind = rng.choice(kinds) if cars else library.find(CAR)
        if (car := world.try_spawn_actor(kind, place)) is not None:
            cars.append(car)
    if not cars:
        raise RecordingError(f"{town} has no free place for a car: restart the server")


def _spawn_camera(carla: Any, world: Any, car: Any, options: Any, undo: ExitStack) -> Any:
    """Return a camera fixed to the car; it is stopped and destroyed before anything else."""
    kind = world.get_blueprint_library().find("sensor.camera.rgb")
    kind.set_attribute("image_size_x", str(options.width))
    kind.set_attribute("image_size_y", str(options.height))
    kind.set_attribute("fov", str(options.fov))
    place = carla.Transform(carla.Location(**CAMERA_POSITION))
    sensor = world.spawn_actor(kind, place, attach_to=car)
    undo.callback(sensor.destroy)
    undo.callback(sensor.stop)
    return sensor


def _destroy(carla: Any, client: Any, cars: Sequence[Any]) -> None:
    """Destroy the cars with one call, which waits for the server once if it is gone."""
    if cars:
        client.apply_batch_sync([carla.command.DestroyActor(car.id) for car in cars], False)


class Camera:
    """Moves the simulation on and hands out the camera's image of just that moment."""

    def __init__(self, world: Any, sensor: Any, timeout: float) -> None:
        self.world, self.timeout = world, timeout
        self.images: queue.Queue[Any] = queue.Queue()
        sensor.listen(self.images.put)

    def tick(self) -> Any:
        """Return the image of the next tick; images of others, which come late, are dropped.

        Raises:
            RecordingError: It does not come in time.
        """
        frame = self.world.tick(self.timeout)
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                image = self.images.get(timeout=max(deadline - time.monotonic(), 1e-3))
            except queue.Empty:
                raise RecordingError(
                    f"the camera sent no image of frame {frame} within {self.timeout:g} s: is the "
                    "server overloaded, without rendering, or driven by another client too?"
                ) from None
            if image.frame == frame:
                return image


def save(image: Any, path: Path) -> None:
    """Write a camera's image, whose bytes are BGRA, as RGB; whole or not at all."""
    pixels = np.frombuffer(image.raw_data, np.uint8).reshape(image.height, image.width, 4)
    part = path.with_suffix(".part")
    Image.fromarray(np.ascontiguousarray(pixels[:, :, 2::-1])).save(part, format="PNG")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
