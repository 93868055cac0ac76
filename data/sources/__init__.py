"""Import of existing data: recognises sources, reads them and writes sealed shards."""
