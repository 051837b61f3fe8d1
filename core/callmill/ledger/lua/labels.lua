-- Tells by what batches are chosen, in one command for many.
-- KEYS  meta of each batch
-- Returns for each {control, phase, ended_ms, name}, each of them false where it is not set
-- Invariant: nothing is changed.
local labels = {}
for i, key in ipairs(KEYS) do labels[i] = redis.call('HMGET', key, 'control', 'phase', 'ended_ms', 'name') end
return labels
