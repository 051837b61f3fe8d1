-- Shared by every script of the ledger: the clock, a chunk's state, the end of a batch. line.lua stands before it.
-- KEYS of every script begin with SHARED: those of BatchKeys, BATCH is all of them, then DUE, LINES, RESUMED, CONTROLS,
-- OPEN, ACTIVE, ENDED; then come those that the script names. FORMAT is the newest ledger format known.
-- Returns an error NEWERFORMAT for a batch of a newer format, before anything else is read or written.

-- Where this stands, META and its field, is the same in every format.
local format = tonumber(redis.call('HGET', META, 'format') or 1)
if format > FORMAT then
  return redis.error_reply('NEWERFORMAT ' .. format .. ' ' .. string.match(META, ':b:(.*):meta$'))
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_us = time[1] * 1000000 + time[2]
local now_s = tonumber(time[1])

local function int(x) return string.format('%.0f', x) end  -- tostring() keeps 14 digits only

-- A chunk's state. status: Q queued, L leased, W waiting for its due time, P parked, D done with failures.
local function read_state(number)
  local text = redis.call('HGET', STATE, number)
  if not text then return nil end
  local fence, status, worker, count, done, failed, claims, deaths =
    string.match(text, '^(%d+)|(%a)|([^|]*)|(%d+)|(%d+)|(%d+)|(%d+)|?(%d*)$')
  return {
    fence = tonumber(fence), status = status, worker = worker, count = tonumber(count),
    done = tonumber(done), failed = tonumber(failed), claims = tonumber(claims), deaths = tonumber(deaths) or 0,
  }
end

-- The last field, deaths, is there only where there were any: most chunks never have one, and older readers know none.
local function write_state(number, s)
  redis.call('HSET', STATE, number, table.concat({
    int(s.fence), s.status, s.worker, int(s.count), int(s.done), int(s.failed), int(s.claims),
    s.deaths > 0 and int(s.deaths) or nil,
  }, '|'))
end

-- How many jobs a payload says that it has; nil: none can be read of it, or more than a chunk may have.
local function jobs_of(payload)
  if #payload < 5 then return nil end
  local _, count = struct.unpack('>BI4', payload)
  return count <= MAX_CHUNK_JOBS and count or nil
end

-- What runs alone of a chunk: since which fence, '*' (all of it) or the offset of a job, how many leases died with it.
local function read_suspect(number)
  return string.match(redis.call('HGET', SUSPECTS, number) or '', '^(%d+)|([^|]+)|(%d+)$')
end

local function write_suspect(number, fence, alone, deaths)
  redis.call('HSET', SUSPECTS, number, table.concat({int(fence), alone, int(deaths)}, '|'))
end

-- Takes note that a lease ended without its worker giving the chunk up.
local function note_death(number, s)
  s.deaths = s.deaths + 1
  local fence, alone, deaths = read_suspect(number)
  if fence and tonumber(fence) == s.fence then write_suspect(number, s.fence, alone, deaths + 1) end
end

-- Queues a chunk, and tells workers of its line: they know of an API's own line only.
local function enqueue(queued, member)
  redis.call('ZADD', queued, int(now_ms), member)
  local line = line_of(member)
  if string.find(line, '@', 1, true) then redis.call('ZADD', LINES, int(now_ms), line) end
end

-- A chunk's member in the line of an API of its name; `own`: that which the batch has to itself.
local function member_in(member, identity, own)
  local head, api, format, _, _, class = parts_of(member)
  return head .. api .. format .. (identity ~= '' and '@i' .. identity or '')
    .. (own and '@b=' .. string.match(head, '^[^/]*') or '') .. class
end

-- The member by which a chunk waits from now on: since it was queued, its batch may have been bound to another API of that
-- name, or been given lines of its own. META's field api:NAME is what the batch is bound to, 'identity address', or 1: to
-- any API of that name.
local function bound_member(member)
  local _, api = parts_of(member)
  local bound = redis.call('HGET', META, 'api:' .. api)
  return bound and member_in(member, bound_identity(bound), redis.call('HGET', META, 'own_lines')) or member
end

-- The queued key of another member's line; `queued` is that of `member`.
local function queued_of(other, queued, member)
  return string.sub(queued, 1, #queued - #line_of(member)) .. line_of(other)
end

-- The other members by which a chunk may be queued, due or leased: that of the line which it is bound to, and those of
-- META's field was:NAME, the lines of former bindings as bind.lua notes them.
local function other_members(member)
  local _, api = parts_of(member)
  local was = redis.call('HGET', META, 'was:' .. api)
  if not was then return {} end
  local others = {bound_member(member)}
  for left in string.gmatch(was, '%S+') do
    others[#others + 1] = member_in(member, string.match(left, '^%x*'), string.find(left, '/own', 1, true))
  end
  for i = #others, 1, -1 do
    if others[i] == member then table.remove(others, i) end
  end
  return others
end

-- Takes a chunk out of every line but that of `member`.
local function leave_other_lines(member, queued)
  for _, other in ipairs(other_members(member)) do
    redis.call('ZREM', queued_of(other, queued, member), other)
    redis.call('ZREM', DUE, other)
    redis.call('ZREM', PARKED, other)
  end
end

-- A Redis that is full refuses a script its first write if that could take memory, and none that follow. What frees
-- memory, or only moves things, says so first, with a removal of nothing.
local function though_full() redis.call('SREM', RESUMED, '') end

-- What the batch should do: run, paused or cancelled. One whose unread outcomes fill their bound is paused until
-- somebody has read and released enough of them.
local function control()
  local m = read_control(META)
  return m.control == 'run' and m.full and 'paused' or m.control
end

-- Notes that so many bytes of outcomes were added. Returns all that ever were, to be kept with them.
local function count_unread(bytes)
  local total = redis.call('HINCRBY', META, 'out_bytes', bytes)
  local m = read_unread(META)
  local most = tonumber(m.max_unread_bytes or 0)
  if most > 0 and not m.full and total - tonumber(m.released_bytes or 0) > most then
    redis.call('HSET', META, 'full', 1)
    redis.call('INCR', CONTROLS)
  end
  return total
end

local function batch_id() return string.match(META, ':b:(.*):meta$') end

-- Ends the batch when nothing of it can change any more: no lease out, and everything recorded or the rest cancelled.
-- Marks the stream, so that readers stop at once, notes the end for the alerts, and starts the retention.
local function end_if_over()
  local m = read_progress(META)
  if not m.phase or m.ended_ms or tonumber(m.leased) > 0 then return false end
  local recorded = tonumber(m.succeeded) + tonumber(m.failed)
  local complete = m.phase == 'sealed' and recorded == tonumber(m.total)
  if not complete and m.control ~= 'cancelled' then return false end
  redis.call('ZREM', ACTIVE, batch_id())
  redis.call('ZADD', ENDED, int(now_ms), batch_id())
  redis.call('HSET', META, 'ended_ms', int(now_ms))
  redis.call('XADD', OUTCOMES, '*', 'end', complete and 'complete' or 'cancelled')
  for _, key in ipairs(BATCH) do redis.call('PEXPIRE', key, m.retention_ms) end
  return true
end

-- Closes a chunk whose jobs are all recorded; its payload stays while some of them failed and may be tried again.
local function close_chunk(number, s, member)
  redis.call('ZREM', DUE, member)
  redis.call('HDEL', DONE, number)
  redis.call('HDEL', REST, number)
  redis.call('HDEL', SUSPECTS, number)
  s.deaths = 0
  if s.failed > 0 and control() ~= 'cancelled' then
    s.status, s.worker = 'D', ''
    write_state(number, s)
  else
    redis.call('HDEL', STATE, number)
    redis.call('HDEL', CHUNKS, number)
  end
end

-- How what is kept of a failure begins: the lengths of its head and of the answer, and the time.
local FAILURE_PREFIX = '>I4I2d'

-- The field of ERRORS that counts a cause.
local OTHER, CAUSES = '(other)', 64
local function error_field(cause)
  if redis.call('HEXISTS', ERRORS, cause) == 1 or redis.call('HLEN', ERRORS) < CAUSES then return cause end
  return OTHER
end

-- Makes failed jobs of a chunk that nobody holds unrecorded again, those of the bitmap `chosen`; returns how many. Their
-- outcomes so far are superseded. Its caller writes the state. Its helpers are inside it, because every script
-- creates the functions out here anew each time it runs.
local function open_failed(number, s, chosen)
  -- Forgets attempts, waits and refusals of jobs, which are where rests.py says; `dropped` has their offsets as keys.
  local REFUSED = 4294967296

  local function forget_attempts(number, dropped)
    local rest = redis.call('HGET', REST, number)
    if not rest then return end
    local packed = {string.char(0x92)}  -- two maps; cmsgpack takes tables with keys from 1 on for arrays
    for _, map in ipairs(cmsgpack.unpack(rest)) do
      local n, items = 0, {}
      for offset, value in pairs(map) do
        if not (dropped[offset] or dropped[-1 - offset] or dropped[-1 - offset - REFUSED]) then
          n = n + 1
          items[n] = cmsgpack.pack(offset) .. cmsgpack.pack(value)
        end
      end
      packed[#packed + 1] = struct.pack('>BI2', 0xde, n) .. table.concat(items)
    end
    redis.call('HSET', REST, number, table.concat(packed))
  end

  -- The last cause of a job's failure, as in failure.py, and its position in the batch; nil if nothing is kept of it.
  local function last_failure(number, offset)
    local data = redis.call('HGET', FAILURES, number .. '/' .. int(offset))
    if not data then return nil end
    local at, head = 1, nil
    while at <= #data do
      local length, answer, _, start = struct.unpack(FAILURE_PREFIX, data, at)
      head = string.sub(data, start, start + length - 1)
      at = start + length + answer
    end
    local index, _, _, code, _, status = unpack(cmsgpack.unpack(head), 1, 6)
    return (not status or code == 'http_' .. status) and code or code .. '/' .. status, index
  end

  -- Takes jobs that run again out of what ERRORS counts; returns their positions in the batch. Those that an older
  -- version recorded are in neither.
  local function forget_errors(number, dropped)
    local counts, indexes = {}, {}
    for offset in pairs(dropped) do
      local cause, index = last_failure(number, offset)
      if cause then
        counts[cause] = (counts[cause] or 0) + 1
        indexes[#indexes + 1] = index
      end
    end
    for cause, jobs in pairs(counts) do
      local field = error_field(cause)
      local counted = tonumber(redis.call('HGET', ERRORS, field) or 0)
      if counted > 0 then redis.call('HINCRBY', ERRORS, field, -math.min(jobs, counted)) end
    end
    return indexes
  end

  -- Marks these jobs' outcomes in the stream so far as superseded: readers leave them out. SUPERSEDED has, for each
  -- block of positions in the batch: the newest entry by then (ms, sequence), the length of a bitmap, the bitmap; the same
  -- again for later entries. A job is in the bitmap of one entry only, the latest noted for it.
  local BLOCK, SUPERSEDED_PREFIX = 1024, '>ddI2'

  local function pack_superseded(ms, sequence, bytes, length)
    local packed, empty = {}, true
    for i = 1, length do
      packed[i] = string.char(bytes[i] or 0)
      empty = empty and (bytes[i] or 0) == 0
    end
    return empty and '' or struct.pack(SUPERSEDED_PREFIX, ms, sequence, length) .. table.concat(packed)
  end

  local function supersede(indexes)
    local newest = redis.call('XREVRANGE', OUTCOMES, '+', '-', 'COUNT', 1)[1]
    if not newest then return end
    local ms, sequence = string.match(newest[1], '^(%d+)-(%d+)$')
    ms, sequence = tonumber(ms), tonumber(sequence)
    local blocks = {}
    for _, index in ipairs(indexes) do
      if index >= 0 then  -- else it is unknown which job it was
        local block, at = math.floor(index / BLOCK), math.floor(index % BLOCK / 8) + 1
        blocks[block] = blocks[block] or {}
        blocks[block][at] = bit.bor(blocks[block][at] or 0, bit.lshift(1, index % 8))
      end
    end
    for block, bytes in pairs(blocks) do
      local data, kept, at = redis.call('HGET', SUPERSEDED, int(block)) or '', {}, 1
      while at <= #data do
        local ms_before, sequence_before, length, start = struct.unpack(SUPERSEDED_PREFIX, data, at)
        local same, rest = ms_before == ms and sequence_before == sequence, {}
        for i = 1, length do
          local byte = string.byte(data, start + i - 1)
          if same then bytes[i] = bit.bor(bytes[i] or 0, byte) end
          rest[i] = same and 0 or bit.band(byte, bit.bnot(bytes[i] or 0))
        end
        kept[#kept + 1] = pack_superseded(ms_before, sequence_before, rest, length)
        at = start + length
      end
      kept[#kept + 1] = pack_superseded(ms, sequence, bytes, table.maxn(bytes))
      redis.call('HSET', SUPERSEDED, int(block), table.concat(kept))
    end
  end

  local failed, done = redis.call('HGET', FAILED, number), redis.call('HGET', DONE, number)
  local again, dropped, still_failed, still_done = 0, {}, {}, {}
  for i = 1, math.ceil(s.count / 8) do
    local all = i * 8 <= s.count and 255 or bit.lshift(1, s.count % 8) - 1
    local f, d = string.byte(failed, i), done and string.byte(done, i) or all  -- a closed chunk has no bitmap
    local open = bit.band(f, string.byte(chosen, i) or 0)
    still_failed[i], still_done[i] = string.char(f - open), string.char(d - open)
    for j = 0, 7 do
      if bit.band(open, bit.lshift(1, j)) ~= 0 then
        again = again + 1
        dropped[8 * (i - 1) + j] = true
      end
    end
  end
  if again == 0 then return 0 end
  redis.call('HSET', DONE, number, table.concat(still_done))
  if again == s.failed then
    redis.call('HDEL', FAILED, number)
  else
    redis.call('HSET', FAILED, number, table.concat(still_failed))
  end
  forget_attempts(number, dropped)
  supersede(forget_errors(number, dropped))
  s.done, s.failed = s.done - again, s.failed - again
  redis.call('HINCRBY', META, 'failed', -again)
  return again
end

-- Where REST has the failed jobs that somebody wants to run again while a worker holds their chunk.
local function wanted_field(number) return 'again/' .. number end

-- Opens what was wanted while a worker held the chunk, now that none does; returns how many jobs.
local function run_wanted(number, s)
  if s.failed == 0 then return 0 end
  local wanted = redis.call('HGET', REST, wanted_field(number))
  if not wanted then return 0 end
  redis.call('HDEL', REST, wanted_field(number))
  return open_failed(number, s, wanted)
end

-- Puts a chunk that nobody holds where it belongs now: queued, parked, closed, or dropped. Returns 1: publish its hint | 0,
-- and the member by which it waits. The hint of a chunk that went to another line is published later, when it is missed.
local function put_back(number, s, member, queued)
  run_wanted(number, s)
  if s.done == s.count then
    close_chunk(number, s, member)
    return 0
  end
  local c = control()
  redis.call('ZREM', DUE, member)
  if c == 'cancelled' then
    redis.call('HDEL', STATE, number)
    redis.call('HDEL', DONE, number)
    redis.call('HDEL', REST, number)
    redis.call('HDEL', SUSPECTS, number)
    return 0
  end
  s.status = c == 'paused' and 'P' or 'Q'
  s.worker = ''
  write_state(number, s)
  local bound = bound_member(member)
  if s.status == 'P' then
    redis.call('ZADD', PARKED, int(now_ms), bound)
  else
    enqueue(queued_of(bound, queued, member), bound)
  end
  return s.status == 'Q' and bound == member and 1 or 0, bound
end
