"""From class folders of photographs to weights that `visionserve build` takes."""
