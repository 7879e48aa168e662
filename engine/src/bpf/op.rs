//! The instructions of classic BPF: numbers for the kernel, decoded for us.
//!
//! ```text
//! assemble --numbers--> BpfInsn --decode--> Op --> run, text
//! ```
//!
//! The numbers are those of `linux/filter.h`. [`Op::decode`] knows exactly the opcodes that
//! `chk_code_allowed` in `net/core/filter.c` lets through, and no more.

use crate::rpcap::BpfInsn;

/// Words of scratch memory, `M[0]` to `M[15]`.
pub(super) const SCRATCH_WORDS: u32 = 16;

/// Offsets from here up (`SKF_AD_OFF`, -0x1000) name facts about the frame, not bytes of it.
pub(super) const ANCILLARY: u32 = 0xffff_f000;
/// Offsets from here up (`SKF_NET_OFF`, -0x100000) count from the network header.
pub(super) const FROM_NETWORK_HEADER: u32 = 0xfff0_0000;
/// Offsets from here up (`SKF_LL_OFF`, -0x200000) count from the link header.
pub(super) const FROM_LINK_HEADER: u32 = 0xffe0_0000;

/// Opcode fields, to be combined with `|`.
pub(super) mod code {
    pub(crate) const LD: u16 = 0x00;
    pub(crate) const LDX: u16 = 0x01;
    pub(crate) const ST: u16 = 0x02;
    pub(crate) const STX: u16 = 0x03;
    pub(crate) const ALU: u16 = 0x04;
    pub(crate) const JMP: u16 = 0x05;
    pub(crate) const RET: u16 = 0x06;
    pub(crate) const MISC: u16 = 0x07;

    pub(crate) const IMM: u16 = 0x00;
    pub(crate) const ABS: u16 = 0x20;
    pub(crate) const IND: u16 = 0x40;
    pub(crate) const MEM: u16 = 0x60;
    pub(crate) const LEN: u16 = 0x80;
    pub(crate) const MSH: u16 = 0xa0;
    /// One byte; the size of `MSH`.
    pub(crate) const BYTE: u16 = 0x10;

    pub(crate) const NEG: u16 = 0x80;
    pub(crate) const JA: u16 = 0x00;
    /// The second operand is X, not K.
    pub(crate) const X: u16 = 0x08;
    /// What a return returns: A, not K.
    pub(crate) const RET_A: u16 = 0x10;
    pub(crate) const TAX: u16 = 0x00;
    pub(crate) const TXA: u16 = 0x80;
}

/// An enum whose values are fields of an opcode.
macro_rules! field {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub(super) const fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)* }
            }

            const fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

field! {
    /// How many bytes a load takes.
    Size {
        /// Four.
        Word = 0x00,
        /// Two.
        Half = 0x08,
        /// One.
        Byte = 0x10,
    }
}

impl Size {
    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Word => 4,
            Self::Half => 2,
            Self::Byte => 1,
        }
    }
}

field! {
    /// Arithmetic on A; it wraps.
    Alu {
        /// A + operand.
        Add = 0x00,
        /// A - operand.
        Sub = 0x10,
        /// A * operand.
        Mul = 0x20,
        /// A / operand; by an X of zero it ends the program with 0.
        Div = 0x30,
        /// A | operand.
        Or = 0x40,
        /// A & operand.
        And = 0x50,
        /// A << operand; of X the low five bits count.
        Lsh = 0x60,
        /// A >> operand; of X the low five bits count.
        Rsh = 0x70,
        /// A % operand; by an X of zero it ends the program with 0.
        Mod = 0x90,
        /// A ^ operand.
        Xor = 0xa0,
    }
}

field! {
    /// A comparison of A, unsigned.
    Condition {
        /// A == operand.
        Equal = 0x10,
        /// A > operand.
        Greater = 0x20,
        /// A >= operand.
        AtLeast = 0x30,
        /// A & operand != 0.
        AnyBit = 0x40,
    }
}

field! {
    /// A fact about a frame beside its bytes, loaded into A.
    Ancillary {
        /// The `EtherType`; behind a tag that was moved out of the frame, the inner one.
        Protocol = 0,
        /// `sll_pkttype`: 4 is outgoing.
        PktType = 4,
        /// The interface.
        IfIndex = 8,
        /// Offset of a netlink attribute; of no use on a network interface.
        NlAttr = 12,
        /// Offset of a nested netlink attribute; of no use on a network interface.
        NlAttrNest = 16,
        /// `skb->mark`.
        Mark = 20,
        /// Receive queue.
        Queue = 24,
        /// ARP hardware type; 1 is Ethernet.
        HaType = 28,
        /// Flow hash.
        RxHash = 32,
        /// The CPU that the program runs on.
        Cpu = 36,
        /// Not a load: A ^ X.
        AluXorX = 40,
        /// Priority and VLAN id of the tag that was moved out of the frame, else 0.
        VlanTag = 44,
        /// 1 if a tag was moved out of the frame.
        VlanTagPresent = 48,
        /// Offset of what follows the transport header.
        PayOffset = 52,
        /// 32 random bits.
        Random = 56,
        /// Protocol of the tag that was moved out of the frame, else 0.
        VlanTpid = 60,
    }
}

impl Ancillary {
    /// The offset that names the fact in a load.
    pub(super) const fn offset(self) -> u32 {
        ANCILLARY + self.number() as u32
    }

    fn from_offset(offset: u32) -> Option<Self> {
        let number = offset.checked_sub(ANCILLARY)?;
        u16::try_from(number).ok().and_then(Self::from_number)
    }
}

/// The second operand of arithmetic and comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A constant.
    K(u32),
    /// The index register.
    X,
}

impl From<u32> for Operand {
    fn from(k: u32) -> Self {
        Self::K(k)
    }
}

/// One decoded instruction. Eight bytes, as the raw one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// A = bytes at an offset from the link header.
    LoadAbsolute(Size, u32),
    /// A = bytes at an offset from the network or link header.
    LoadNegative(Size, u32),
    /// A = bytes at X + offset.
    LoadIndirect(Size, u32),
    LoadAncillary(Ancillary),
    LoadLen,
    LoadImmediate(u32),
    LoadScratch(u32),
    /// X = 4 * (byte & 15): the length of an IPv4 header.
    LoadXHeaderLen(u32),
    LoadXLen,
    LoadXImmediate(u32),
    LoadXScratch(u32),
    Store(u32),
    StoreX(u32),
    AluK(Alu, u32),
    AluX(Alu),
    Neg,
    Jump(u32),
    BranchK(Condition, u8, u8, u32),
    BranchX(Condition, u8, u8),
    Return(u32),
    ReturnA,
    Tax,
    Txa,
}

const _: () = assert!(size_of::<Op>() == 8);

impl Op {
    /// The instruction, if the kernel knows its opcode and, of a load, its offset.
    pub(super) fn decode(insn: BpfInsn) -> Option<Self> {
        use code::{
            ABS, ALU, BYTE, IMM, IND, JA, JMP, LD, LDX, LEN, MEM, MISC, MSH, NEG, RET, RET_A, ST,
            STX, TAX, TXA, X,
        };
        let BpfInsn { code, jt, jf, k } = insn;
        if code > 0xff {
            return None;
        }
        // The fields above the class; which of them an opcode has depends on the class.
        let rest = code & !0x07;
        let (high, x) = (code & 0xf0, code & X != 0);
        Some(match code & 0x07 {
            LD => match code & 0xe0 {
                ABS => Self::load_absolute(Size::from_number(code & 0x18)?, k)?,
                IND => Self::LoadIndirect(Size::from_number(code & 0x18)?, k),
                IMM if rest == IMM => Self::LoadImmediate(k),
                MEM if rest == MEM => Self::LoadScratch(k),
                LEN if rest == LEN => Self::LoadLen,
                _ => return None,
            },
            LDX => match rest {
                IMM => Self::LoadXImmediate(k),
                MEM => Self::LoadXScratch(k),
                LEN => Self::LoadXLen,
                _ if rest == MSH | BYTE => Self::LoadXHeaderLen(k),
                _ => return None,
            },
            ST if rest == 0 => Self::Store(k),
            STX if rest == 0 => Self::StoreX(k),
            ALU if rest == NEG => Self::Neg,
            ALU if x => Self::AluX(Alu::from_number(high)?),
            ALU => Self::AluK(Alu::from_number(high)?, k),
            JMP if rest == JA => Self::Jump(k),
            JMP if x => Self::BranchX(Condition::from_number(high)?, jt, jf),
            JMP => Self::BranchK(Condition::from_number(high)?, jt, jf, k),
            RET if rest == 0 => Self::Return(k),
            RET if rest == RET_A => Self::ReturnA,
            MISC if rest == TAX => Self::Tax,
            MISC if rest == TXA => Self::Txa,
            _ => return None,
        })
    }

    fn load_absolute(size: Size, k: u32) -> Option<Self> {
        if k >= ANCILLARY {
            return Ancillary::from_offset(k).map(Self::LoadAncillary);
        }
        let negative = k.cast_signed() < 0;
        Some(if negative { Self::LoadNegative(size, k) } else { Self::LoadAbsolute(size, k) })
    }
}
