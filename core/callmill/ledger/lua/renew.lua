-- Extends the leases that a worker still holds.
-- KEYS  DUE  LEASES: for each, state and meta of its batch
-- ARG   lease_ms  leases, each: number of the chunk, member, fence
-- Returns per lease: 1 renewed | 0 lost: another worker holds the chunk, or it is over | 2 renewed, but the batch is
--         paused, cancelled, full of unread outcomes, or bound to another API of that name: start no further calls
-- Invariant: only the holder of the current fence moves the lease's end.
local time = redis.call('TIME')
local ends = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARG.lease_ms)
local renewed = {}
for i, lease in ipairs(ARG.leases) do
  local text = redis.call('HGET', LEASES[i].state, lease.number) or ''
  if tonumber(string.match(text, '^(%d+)|L|')) ~= lease.fence then
    renewed[i] = 0
  else
    redis.call('ZREM', DUE, '')  -- removes nothing; after it, a Redis that is full lets the lease be moved
    redis.call('ZADD', DUE, ends, lease.member)
    local _, api, _, identity = parts_of(lease.member)
    local m = read_control(LEASES[i].meta)
    local bound = bound_identity(redis.call('HGET', LEASES[i].meta, 'api:' .. api))
    local elsewhere = bound ~= '' and bound ~= identity
    renewed[i] = m.control == 'run' and not m.full and not elsewhere and 1 or 2
  end
end
return renewed
