"""Write the public names of CARLA's client to carla_client.json, which the recorder's tests read.

pip install carla && python tests/carla_client.py
"""

import importlib
import json
from pathlib import Path

CLASSES = (
    *("Client", "World", "WorldSettings", "Map", "TrafficManager", "BlueprintLibrary"),
    *("ActorBlueprint", "Vehicle", "Sensor", "Image", "Location", "Transform"),
    *("WeatherParameters", "command"),
)

if __name__ == "__main__":
    carla = importlib.import_module("carla")
    public = {
        name: [key for key in dir(getattr(carla, name)) if not key.startswith("_")]
        for name in CLASSES
    }
    text = json.dumps(public, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")
