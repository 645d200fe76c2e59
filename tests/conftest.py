"""Fixtures that every part of the tests shares."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from shapely import Point
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Scale

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sdata() -> SpatialData:
    """A 400 x 600 image in three scales whose red channel is x // 4 and green is y // 4, and 12 spots."""
    yy, xx = np.mgrid[:400, :600]
    image = np.stack([xx // 4, yy // 4, np.zeros_like(xx)]).astype(np.uint8)
    # shapes are stored in half-resolution coordinates, to check that transformations are applied
    centres = [(x / 2, y / 2) for y in (50, 200, 390) for x in (10, 150, 300, 590)]
    gdf = gpd.GeoDataFrame({"radius": 10.0}, geometry=[Point(c) for c in centres], index=[f"s{i}" for i in range(12)])
    shapes = ShapesModel.parse(gdf, transformations={"global": Scale([2.0, 2.0], axes=("x", "y"))})
    obs = pd.DataFrame({"region": "spots", "instance": gdf.index}, index=gdf.index)
    obs["region"] = obs["region"].astype("category")
    adata = AnnData(np.zeros((12, 4), np.float32), obs=obs)
    table = TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    img = Image2DModel.parse(image, dims=("c", "y", "x"), scale_factors=[2, 2], c_coords=["r", "g", "b"])
    return SpatialData(images={"he": img}, shapes={"spots": shapes}, tables={"table": table})


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path in self.server.cut else content)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture
def loopback() -> Iterator[ThreadingHTTPServer]:
    """A server of ``files`` (path to content), at ``url``; it notes what was ``asked`` and breaks off what is ``cut``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        httpd.files, httpd.cut, httpd.asked = {}, set(), []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()
