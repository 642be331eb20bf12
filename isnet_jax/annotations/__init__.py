"""From polygon and mask annotations of COCO, labelme and CVAT to label images that the data set `folder` reads."""
