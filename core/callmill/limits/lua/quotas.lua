-- Part of reserve: limits that are spent as fast as others allow and then waited for.
--
-- A quota's hash counts what was granted in buckets of window / 96: field = number of the bucket, value = units of the
-- starts that lie in it; and their total. Where the server's windows are known (aligned), a bucket counts until its
-- window ends; else until no call that started in it can share a window with a later one.
--
-- Invariant: no window of a quota, and guard, holds starts of more units than its amount, but for what calls cost beyond
-- what was reserved.
local quota = {}

function quota.ends(x, bucket)
  local over = (bucket + 1) * x.width
  if x.aligned then
    local window_end = x.aligned + (math.floor((over - x.aligned) / x.window) + 1) * x.window + x.blur
    return math.min(window_end, over + x.window) + x.force
  end
  return over + x.window + x.force
end

function quota.load(x) -- read the buckets and drop the old ones; few exchanges need to, for the sum is kept
  if x.used then return end
  x.used, x.order, x.over = {}, {}, {}
  local function add(bucket, units)
    if not x.used[bucket] then x.order[#x.order + 1] = bucket end
    x.used[bucket] = (x.used[bucket] or 0) + units
  end
  local all = redis.call('HGETALL', x.key)
  for j = 1, #all, 2 do
    local bucket = tonumber(all[j])
    if bucket and quota.ends(x, bucket) <= now then
      x.over[#x.over + 1] = bucket
    elseif bucket then
      add(bucket, tonumber(all[j + 1]))
    end
  end
  for bucket, units in pairs(x.added) do add(bucket, units) end
  table.sort(x.order)
  x.total, x.oldest, x.newest = 0, x.order[1] or 0, x.order[#x.order] or 0
  for _, units in pairs(x.used) do x.total = x.total + units end
end

function quota.due(x, units) -- when enough has aged out; a call dearer than the quota waits until nothing is left
  local over, at = x.total + math.min(math.max(units, 1), x.amount) - x.amount, x.block
  if over <= 0 then return at end
  quota.load(x)
  for _, bucket in ipairs(x.order) do
    if over <= 0 then break end
    over, at = over - x.used[bucket], math.max(at, quota.ends(x, bucket))
  end
  return at
end

function quota.spend(x, at, units) -- never before the newest bucket: later is safe, and keeps the order
  local bucket = math.max(math.floor(at / x.width), x.newest)
  if x.used then
    if not x.used[bucket] then x.order[#x.order + 1] = bucket end
    x.used[bucket] = (x.used[bucket] or 0) + units
  end
  x.added[bucket] = (x.added[bucket] or 0) + units
  x.total, x.newest = x.total + units, bucket
  if x.oldest == 0 then x.oldest = bucket end
end

function quota.give_back(x, at, units) -- to the bucket of the start, or to older ones: a newer one's count is needed longer
  quota.load(x)
  for j = #x.order, 1, -1 do
    local bucket = x.order[j]
    if units <= 0 then break end
    if bucket <= at / x.width then
      local part = math.min(units, x.used[bucket])
      units, x.total, x.used[bucket] = units - part, x.total - part, x.used[bucket] - part
      x.added[bucket] = (x.added[bucket] or 0) - part
    end
  end
end

function quota.write(x)
  if x.over and #x.over > 0 then redis.call('HDEL', x.key, unpack(x.over)) end
  if not x.used and not next(x.added) then return end
  for bucket, units in pairs(x.added) do redis.call('HINCRBY', x.key, bucket, units) end
  redis.call('HSET', x.key, 'total', x.total, 'oldest', x.oldest, 'newest', x.newest)
  redis.call('EXPIRE', x.key, math.ceil(2 * x.window / 1000000))
end
