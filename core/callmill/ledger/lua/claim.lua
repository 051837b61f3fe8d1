-- Gives a worker the time-limited right to execute a chunk.
-- KEYS  SHARED, queued(line)
-- ARGV  1 chunk number  2 member  3 worker  4 lease (ms)
-- Returns {'ok', fence, payload, bitmap of recorded jobs or '', what the remainder must know or '', earlier claims,
--          now (ms), the batch's deadline (ms; '0': none), jobs, deaths: leases in a row that ended without a word,
--          the suspect ('*': all, or an offset) or '', how many of the deaths were while it ran alone, name}
--       | {'gone'} done, cancelled or unknown | {'leased'} | {'waiting'} not due yet | {'paused'} held back now
--       | {'moved'} it waits in another line now, because its batch is bound to another API of that name
-- Invariant: every claim raises the fence, so at most one worker can record for a chunk. The fence follows the clock, so
-- that a server which lost its last writes does not give the same one out twice. While a chunk is leased, DUE has one
-- entry of it: in the line in which it was claimed, wherever its batch is bound meanwhile.
local number, member = ARGV[1], ARGV[2]
local payload = redis.call('HGET', CHUNKS, number)
local s = read_state(number)
if not payload and s and control() ~= 'cancelled' then payload = '' end  -- lost: its jobs end as those of a corrupt one
if not payload or (s and s.status == 'D') then
  redis.call('ZREM', KEYS[OWN], member)
  return {'gone'}
end
local due, elsewhere = tonumber(redis.call('ZSCORE', DUE, member)), false
if not due and s and (s.status == 'L' or s.status == 'W') then
  for _, other in ipairs(other_members(member)) do
    due = due or tonumber(redis.call('ZSCORE', DUE, other))
  end
  elsewhere = due ~= nil
end
-- A lease that was taken in another line is over when requeue has put the chunk where it belongs now.
if s and s.status == 'L' and due and (elsewhere or due > now_ms) then return {'leased'} end
if s and s.status == 'W' and due and due > now_ms then return {'waiting'} end
redis.call('ZREM', KEYS[OWN], member)
local bound = bound_member(member)
if bound ~= member then
  local queued = queued_of(bound, KEYS[OWN], member)
  if not s or s.status == 'Q' then
    redis.call('ZREM', DUE, member)
    leave_other_lines(bound, queued)
    if not redis.call('ZSCORE', queued, bound) then enqueue(queued, bound) end
  end
  return {'moved'}
end
if not s then  -- an older producer wrote it
  local _, count = struct.unpack('>BI4', payload)
  s = {fence = 0, status = 'Q', worker = '', count = count, done = 0, failed = 0, claims = 0, deaths = 0}
end
if s.status == 'L' then note_death(number, s) end
run_wanted(number, s)
leave_other_lines(member, KEYS[OWN])
local paused = control() ~= 'run'
if paused or s.done == s.count then  -- the latter: its worker died between recording the last job and giving it up
  if s.status == 'L' then redis.call('HINCRBY', META, 'leased', -1) end
  put_back(number, s, member, KEYS[OWN])
  end_if_over()
  return {paused and 'paused' or 'gone'}
end
if s.status ~= 'L' then redis.call('HINCRBY', META, 'leased', 1) end
redis.call('ZREM', PARKED, member)
s.fence, s.status, s.worker, s.claims = math.max(s.fence + 1, now_us), 'L', ARGV[3], s.claims + 1
write_state(number, s)
redis.call('ZADD', DUE, int(now_ms + tonumber(ARGV[4])), member)
local _, alone, alone_deaths = read_suspect(number)
return {
  'ok', s.fence, payload, redis.call('HGET', DONE, number) or '', redis.call('HGET', REST, number) or '', s.claims - 1,
  now_ms, redis.call('HGET', META, 'deadline_ms') or '0', s.count, s.deaths, alone or '', tonumber(alone_deaths) or 0,
  redis.call('HGET', META, 'name') or '',
}
