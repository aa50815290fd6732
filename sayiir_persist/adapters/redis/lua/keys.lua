-- What all keys of the partition begin with. Its own are named in capitals, as `keys.py` orders
-- them; those of an instance are declared wherever the caller names it, and those of instances that
-- a script finds carry the same hash tag.
local prefix = string.sub(FLOOR, 1, -#'floor' - 1)
