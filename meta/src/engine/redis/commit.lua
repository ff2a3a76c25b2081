-- Applies one transaction: evaluates every check, then performs every write.
--
-- KEYS: the keys in the order in which the steps below use them, one or more for each step.
-- ARGV: the number of checks; then for each check and after them for each write a letter and its operands.
-- Answer: the 0-based index of the first check that failed (nothing was written), or the list of results
-- of those writes that have one.
--
-- 64-bit numbers stay strings: a Lua number is a double and exact only below 2^53.
local call, byte, char, sub = redis.call, string.byte, string.char, string.sub
local floor, band = math.floor, bit.band
local EXACT = 9007199254740992
local NO_ACL = string.rep('\0', 8)
-- Fields of a canonical record, first and last byte, counted from 1.
local FIELDS = { { 1, 1 }, { 2, 3 }, { 4, 7 }, { 8, 11 }, { 12, 23 }, { 24, 35 }, { 36, 47 }, { 48, 51 },
  { 52, 59 }, { 60, 63 }, { 64, 71 }, { 72, 75 }, { 76, 79 }, { 80, 80 } }

local k, a = 0, 0
local function key()
  k = k + 1
  return KEYS[k]
end
local function arg()
  a = a + 1
  return ARGV[a]
end

-- Attribute records by key, as they are stored; false for an absent one.
local records = {}
local function record(name)
  local raw = records[name]
  if raw == nil then
    raw = call('GET', name)
    records[name] = raw
  end
  return raw
end

-- A record of any length as 80 bytes: 71 of fixed fields, 8 of ACL ids, tier.
local function canonical(raw)
  local n = #raw
  if n >= 80 then return sub(raw, 1, 80) end
  if n == 79 then return raw .. '\0' end
  if n >= 72 then return sub(raw, 1, 71) .. NO_ACL .. sub(raw, 72, 72) end
  if n == 71 then return raw .. NO_ACL .. '\0' end
  return sub(raw, 1, 63) .. string.rep('\0', 17)
end

-- The shortest record, as JuiceFS writes it: absent ACL ids and tier left out, a zero byte at the end.
local function shortest(full)
  local tail = sub(full, 80, 80)
  if tail ~= '\0' then tail = tail .. '\0' end
  if sub(full, 72, 79) == NO_ACL then return sub(full, 1, 71) .. tail end
  return sub(full, 1, 79) .. tail
end

local function attr_holds(raw, fields, want)
  if not raw or #raw < 63 then return false end
  local have = canonical(raw)
  if fields == 255 then return have == want end
  return floor(byte(have, 2) / 16) == floor(byte(want, 2) / 16)
    and (band(fields, 1) == 0 or byte(have, 1) == byte(want, 1))
    and (band(fields, 2) == 0 or sub(have, 2, 11) == sub(want, 2, 11))
    and (band(fields, 4) == 0 or sub(have, 64, 71) == sub(want, 64, 71))
    and (band(fields, 8) == 0 or sub(have, 48, 51) == sub(want, 48, 51))
    and (band(fields, 16) == 0 or sub(have, 72, 80) == sub(want, 72, 80))
end

-- Whether the list begins with the records in `want`, and ends there too if `whole`.
local function list_holds(name, want, whole)
  local n = #want / 24
  if whole then
    if call('LLEN', name) ~= n then return false end
  elseif n == 0 then
    return true
  end
  return table.concat(call('LRANGE', name, 0, n - 1)) == want
end

-- A lock's value with every type but Linux' read lock as Linux' write lock; a BSD lock as it is.
local function lock_value(raw)
  if #raw < 24 then return raw end
  local parts = {}
  for at = 1, #raw, 24 do
    local kind = sub(raw, at, at + 3)
    if kind ~= '\0\0\0\0' then kind = '\0\0\0\1' end
    parts[#parts + 1] = kind .. sub(raw, at + 4, at + 23)
  end
  return table.concat(parts)
end

-- Whether the locks in the hash are exactly the next `n` pairs of owner and value. An empty value is none.
local function locks_hold(name, n)
  local want = {}
  for _ = 1, n do
    local owner = arg()
    want[owner] = arg()
  end
  local have = call('HGETALL', name)
  for i = 1, #have, 2 do
    if have[i + 1] ~= '' then
      if want[have[i]] ~= lock_value(have[i + 1]) then return false end
      n = n - 1
    end
  end
  return n == 0
end

local function check(op)
  if op == 'A' then return attr_holds(record(key()), tonumber(arg()), arg()) end
  -- 9 bytes, or none when the entry must be absent.
  if op == 'D' then return (call('HGET', key(), arg()) or '') == arg() end
  if op == 'E' then return call('EXISTS', key()) == 0 end
  if op == 'X' then return call('HEXISTS', key(), arg()) == tonumber(arg()) end
  if op == 'L' then return list_holds(key(), arg(), arg() == '1') end
  if op == 'N' then return (call('GET', key()) or '0') == arg() end
  if op == 'S' then return call('GET', key()) == arg() end
  if op == 'H' then return call('HGET', key(), arg()) == arg() end
  if op == 'K' then return locks_hold(key(), tonumber(arg())) end
  error('unknown check ' .. tostring(op))
end

-- `have` with the fields that differ between `old` and `new` as in `new`.
local function merged(have, old, new)
  if have == old then return new end
  local parts = {}
  for i, field in ipairs(FIELDS) do
    local now = sub(new, field[1], field[2])
    if now == sub(old, field[1], field[2]) then now = sub(have, field[1], field[2]) end
    parts[i] = now
  end
  return table.concat(parts)
end

local function update_attr(name, old, new)
  local raw = record(name)
  if not raw or #raw < 63 then return end
  local full = merged(canonical(raw), old, new)
  records[name] = nil
  if #raw > 81 then
    -- Longer than any record known: keep what follows the tier.
    call('SETRANGE', name, 0, full)
  else
    call('SET', name, shortest(full))
  end
end

-- Modification time, change time and link count are neighbours: bytes 23 to 50, counted from 0.
local function patch_dir(name, time, delta)
  local raw = record(name)
  if not raw or #raw < 63 then return end
  local patch, from = time, 23
  if time == '' then from = 47 end
  if delta ~= 0 then
    local b1, b2, b3, b4 = byte(raw, 48, 51)
    local n = ((b1 * 256 + b2) * 256 + b3) * 256 + b4 + delta
    n = math.max(0, math.min(n, 4294967295))
    patch = patch .. char(floor(n / 16777216), floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
  end
  if patch ~= '' then
    records[name] = nil
    call('SETRANGE', name, from, patch)
  end
end

local function add_dir_stat(length, space, inodes, dir, by_length, by_space, by_inodes)
  if call('HEXISTS', length, dir) + call('HEXISTS', space, dir) + call('HEXISTS', inodes, dir) < 3 then
    return 0
  end
  call('HINCRBY', length, dir, by_length)
  call('HINCRBY', space, dir, by_space)
  call('HINCRBY', inodes, dir, by_inodes)
  return 1
end

-- Drops the locks of a session: `held` names the lock keys it may have fields in, each field begins with
-- `owner`. Those keys are not declared: they are of the same volume, so in a cluster of the same slot.
local function release_locks(held, owner)
  for _, name in ipairs(call('SMEMBERS', held)) do
    for _, field in ipairs(call('HKEYS', name)) do
      if sub(field, 1, #owner) == owner then call('HDEL', name, field) end
    end
  end
  call('DEL', held)
end

-- Drops one owner's locks on an inode, and the note of its session if the session has no more there.
local function release_lock(locks, held, owner, session)
  call('HDEL', locks, owner)
  for _, field in ipairs(call('HKEYS', locks)) do
    if sub(field, 1, #session) == session then return end
  end
  call('SREM', held, locks)
end

-- A quota is there if its used inodes are. `op`: L sets limits, U sets usage, A adds to the usage of a
-- quota that is there, M makes one to add to, D takes the limits away.
local function quota(op, limits, space, inodes, field, value, by_space, by_inodes)
  local known = call('HEXISTS', inodes, field)
  if op == 'L' or op == 'D' then
    if op == 'L' or known == 1 then call('HSET', limits, field, value) end
    if op == 'L' and known == 0 then
      call('HSET', space, field, 0)
      call('HSET', inodes, field, 0)
    end
  elseif known == 1 or op == 'M' then
    call('HSETNX', limits, field, value)
    local set = op == 'U' and 'HSET' or 'HINCRBY'
    call(set, space, field, by_space)
    call(set, inodes, field, by_inodes)
  end
  return known
end

-- Numbers are taken from the counter; one that is in use all the same is passed over.
local function insert_acl(rules, last, rule)
  while true do
    local id = call('INCR', last)
    if call('HSETNX', rules, string.format('%.0f', id), rule) == 1 then return id end
  end
end

-- Runs a command with a key and operands.
local function command()
  local name, target, n = arg(), key(), tonumber(arg())
  records[target] = nil
  a = a + n
  return call(name, target, unpack(ARGV, a - n + 1, a)), name, target, ARGV[a - n + 1]
end

local results = {}
local function write(op)
  if op == 'c' then
    command()
  elseif op == 'r' then
    local value, name, target, field = command()
    if value >= EXACT or value <= -EXACT then
      if name == 'INCRBY' then value = call('GET', target) else value = call('HGET', target, field) end
    end
    results[#results + 1] = value
  elseif op == 'u' then
    update_attr(key(), arg(), arg())
  elseif op == 'p' then
    patch_dir(key(), arg(), tonumber(arg()))
  elseif op == 's' then
    results[#results + 1] = add_dir_stat(key(), key(), key(), arg(), arg(), arg(), arg())
  elseif op == 'q' then
    results[#results + 1] = quota(arg(), key(), key(), key(), arg(), arg(), arg(), arg())
  elseif op == 'i' then
    results[#results + 1] = insert_acl(key(), key(), arg())
  elseif op == 'k' then
    release_lock(key(), key(), arg(), arg())
  elseif op == 'l' then
    release_locks(key(), arg())
  else
    error('unknown write ' .. tostring(op))
  end
end

for i = 1, tonumber(arg()) do
  if not check(arg()) then return i - 1 end
end
while a < #ARGV do
  write(arg())
end
return results
