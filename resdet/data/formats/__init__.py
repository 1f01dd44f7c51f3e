"""Other tools' annotations -> COCO's structure. `sources.open_split` chooses; the rest of resdet sees COCO alone."""
