-- Gives a worker the time-limited right to execute a chunk.
-- KEYS  SHARED, QUEUED of its line
-- ARG   number of the chunk  member  worker  lease_ms
-- Returns the verdict: 'ok', with fence, payload, size_bytes of it: of more than SMALL_CHUNK_BYTES the payload is '', to be
--         read when there is room for it, recorded: bitmap of jobs or '', rest: what the remainder must know or '',
--         claims before this one, now_ms, deadline_ms of the batch ('0': none), count of jobs, deaths: leases in a row that
--         ended without a word, alone: the suspect ('*': all, or an offset) or '', alone_deaths: how many of the deaths
--         were while it ran alone, name
--       | 'gone': done, cancelled or unknown | 'leased' | 'waiting': not due yet | 'paused': held back now
--       | 'moved': it waits in another line now, because its batch is bound to another API of that name
-- Invariant: every claim raises the fence, so at most one worker can record for a chunk. The fence follows the clock, so
-- that a server which lost its last writes does not give the same one out twice. While a chunk is leased, DUE has one
-- entry of it: in the line in which it was claimed, wherever its batch is bound meanwhile.
local number, member = ARG.number, ARG.member
local size_bytes = redis.call('HSTRLEN', CHUNKS, number)
local s = read_state(number)
local exists = size_bytes > 0 or redis.call('HEXISTS', CHUNKS, number) == 1
if not exists and s and control() ~= 'cancelled' then exists = true end  -- lost: its jobs end as those of a corrupt one
if not exists or (s and s.status == 'D') then
  redis.call('ZREM', QUEUED, member)
  return answer({verdict = 'gone'})
end
local due, elsewhere = tonumber(redis.call('ZSCORE', DUE, member)), false
if not due and s and (s.status == 'L' or s.status == 'W') then
  for _, other in ipairs(other_members(member)) do
    due = due or tonumber(redis.call('ZSCORE', DUE, other))
  end
  elsewhere = due ~= nil
end
-- A lease that was taken in another line is over when requeue has put the chunk where it belongs now.
if s and s.status == 'L' and due and (elsewhere or due > now_ms) then return answer({verdict = 'leased'}) end
if s and s.status == 'W' and due and due > now_ms then return answer({verdict = 'waiting'}) end
redis.call('ZREM', QUEUED, member)
local bound = bound_member(member)
if bound ~= member then
  local queued = queued_of(bound, QUEUED, member)
  if not s or s.status == 'Q' then
    redis.call('ZREM', DUE, member)
    leave_other_lines(bound, queued)
    if not redis.call('ZSCORE', queued, bound) then enqueue(queued, bound) end
  end
  return answer({verdict = 'moved'})
end
if not s then  -- an older producer wrote it
  s = {
    fence = 0, status = 'Q', worker = '', count = jobs_of(redis.call('HGET', CHUNKS, number)) or 1,
    done = 0, failed = 0, claims = 0, deaths = 0,
  }
end
if s.count > MAX_CHUNK_JOBS then  -- nobody writes such: it fails as one job, at the cost of one
  redis.call('HINCRBY', META, 'total', 1 - s.count)
  s.count, s.done, s.failed = 1, 0, 0
end
if s.status == 'L' then note_death(number, s) end
run_wanted(number, s)
leave_other_lines(member, QUEUED)
local paused = control() ~= 'run'
if paused or s.done == s.count then  -- the latter: its worker died between recording the last job and giving it up
  if s.status == 'L' then redis.call('HINCRBY', META, 'leased', -1) end
  put_back(number, s, member, QUEUED)
  end_if_over()
  return answer({verdict = paused and 'paused' or 'gone'})
end
if s.status ~= 'L' then redis.call('HINCRBY', META, 'leased', 1) end
redis.call('ZREM', PARKED, member)
s.fence, s.status, s.worker, s.claims = math.max(s.fence + 1, now_us), 'L', ARG.worker, s.claims + 1
write_state(number, s)
redis.call('ZADD', DUE, int(now_ms + ARG.lease_ms), member)
local _, alone, alone_deaths = read_suspect(number)
return answer({
  verdict = 'ok', fence = s.fence, size_bytes = size_bytes,
  payload = size_bytes <= SMALL_CHUNK_BYTES and redis.call('HGET', CHUNKS, number) or '', recorded = redis.call('HGET', DONE, number) or '',
  rest = redis.call('HGET', REST, number) or '', claims = s.claims - 1, now_ms = now_ms,
  deadline_ms = redis.call('HGET', META, 'deadline_ms') or '0', count = s.count, deaths = s.deaths, alone = alone or '',
  alone_deaths = tonumber(alone_deaths) or 0, name = redis.call('HGET', META, 'name') or '',
})
