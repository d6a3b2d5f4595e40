"""DanceWithMusic's data: raw layouts, music, poses, faces, schema, builder and a synthetic source."""
