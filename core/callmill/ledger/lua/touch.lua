-- Notes that the hints of queued chunks are in a worker's hands, so that they are not taken for lost.
-- KEYS  QUEUED: of each chunk's line   ARG  members: theirs
-- Returns nothing
-- Invariant: a chunk that is not queued any more is left alone.
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for i, key in ipairs(QUEUED) do redis.call('ZADD', key, 'XX', now, ARG.members[i]) end
