"""Images, masks, videos and label files: reading, writing, resizing and drawing. No torch."""

from resnest_seg import lazy_exports

_HOMES = {
    "BandReader": "bands",
    "BandStatistics": "bands",
    "Digest": "downloads",
    "Georeference": "georeference",
    "LargeImage": "large_images",
    "LargeLabels": "large_images",
    "PalettePng": "images",
    "Raster": "bands",
    "VideoReader": "video",
    "VideoWriter": "video",
    "as_pixels": "images",
    "colourise": "visualize",
    "contact_sheet": "visualize",
    "decode_image": "images",
    "decode_mask": "masks",
    "download": "downloads",
    "error_map": "visualize",
    "image_size": "masks",
    "mask_palette": "masks",
    "overlay": "visualize",
    "picture_of": "visualize",
    "polygons": "outlines",
    "polygons_on_map": "map_polygons",
    "read_georeference": "georeference",
    "read_image": "images",
    "resized_rows": "resize",
    "write_labels": "visualize",
    "write_map_polygons": "map_polygons",
    "write_png": "visualize",
    "write_polygons": "outlines",
    "write_video": "video",
}

__all__ = sorted(_HOMES)
__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
